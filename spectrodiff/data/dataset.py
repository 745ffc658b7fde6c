"""Prepared datasets, opened by name and read by random access without TensorFlow."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from spectrodiff.data.pieces import count_samples
from spectrodiff.errors import InputError
from spectrodiff.files import utf8_path, write_text
from spectrodiff.notes.sequence import with_program

_FEATURES = {"name", "audio", "notes", "stems"}
_READERS = 8  # threads that read a split to find the lengths of its recordings


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """A sequence of the records of one split, as `recordings.encode` makes them, in the order of the files.

    With `program`, all notes except drums get that MIDI program in place of the recorded one.
    """

    dataset: str
    split: str
    folder: pathlib.Path
    source: Any  # a TFDS data source
    program: int | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns a record.

        Raises:
          InputError: its file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self.source[index]
        except Exception as error:  # array_record and protobuf raise exceptions of many classes
            why = str(error).splitlines()[0]
            raise InputError(f"cannot read {self.folder}: record {index} of {self.split} is damaged ({why})") from error
        columns = record["stems"]
        stems = zip(columns["audio"], columns["notes"], strict=True)
        stems = [{"audio": audio, "notes": self._with_program(notes)} for audio, notes in stems]
        return {**record, "notes": self._with_program(record["notes"]), "stems": stems}

    def _with_program(self, notes: bytes) -> bytes:
        return notes if self.program is None else with_program(notes, self.program)

    @functools.cached_property
    def samples(self) -> Int[np.ndarray, " records"]:
        """The length of every recording, in samples.

        Finding it reads all records, so it is stored in the dataset's folder the first time.
        """
        path = self.folder / f"lengths-{self.split}.json"
        with contextlib.suppress(OSError, TypeError, ValueError):  # missing or damaged: computed again
            lengths = np.asarray(json.loads(path.read_text()), np.int64)
            if lengths.shape == (len(self),):
                return lengths
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            lengths = pool.map(lambda index: count_samples(self[index]["audio"]), range(len(self)))
            progress = tqdm(lengths, f"lengths of {self.dataset}", len(self), unit="piece", mininterval=1.0, delay=2.0)
            lengths = np.array(list(progress), np.int64)
        with contextlib.suppress(InputError):  # the disk may be read-only
            write_text(path, json.dumps(lengths.tolist()) + "\n")
        return lengths


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset; `dataset["train"]` returns the records of its train split."""

    name: str
    folder: pathlib.Path
    builder: Any  # a TFDS builder

    @property
    def splits(self) -> list[str]:
        """The names of the splits that are not empty."""
        return [name for name, split in self.builder.info.splits.items() if split.num_examples]

    def __getitem__(self, split: str) -> Records:
        """Returns the records of a split.

        Raises:
          InputError: there is no such split, it is empty, or a file of it is missing.
        """
        if split not in self.splits:
            held = ", ".join(self.splits) or "nothing"
            raise InputError(
                f"the dataset in {self.folder} has no records in a {split!r} split; it holds {held}; recordings of "
                "your own are given splits by a splits.csv"
            )
        for path in map(pathlib.Path, self.builder.info.splits[split].filepaths):
            if not path.is_file():
                raise InputError(f"{path} is missing: delete {self.folder} and prepare {self.name} again")
        return Records(self.name, split, self.folder, self.builder.as_data_source(split))


def open_dataset(data_dir: str | pathlib.Path, name: str) -> Dataset:
    """Opens the dataset that `spectrodiff prepare` wrote into `data_dir/name/VERSION`.

    `name` is a name, which means its newest version, or NAME/VERSION.

    Raises:
      InputError: there is no such dataset, it was not made by `spectrodiff prepare`, `data_dir` is an address or not
        UTF-8, or TFDS is not installed.
    """
    try:
        import tensorflow_datasets as tfds  # takes half a second
    except ImportError as error:
        raise InputError('reading datasets needs TFDS: pip install "spectrodiff[data]"') from error
    utf8_path(data_dir)
    data_dir = pathlib.Path(data_dir)
    versions = _versions(data_dir / name)
    if not versions:
        found = ", ".join(sorted(path.name for path in _folders(data_dir) if _versions(path))) or "none"
        corpus = name.split("/")[0]
        raise InputError(
            f"no dataset {name!r} in {data_dir} (there: {found}); make it with "
            f"`spectrodiff prepare {corpus} --data_dir {data_dir}`, or of your own recordings with "
            f"`spectrodiff prepare folder --name {corpus}`"
        )
    folder = versions[-1]
    try:
        builder = tfds.builder_from_directory(folder)
        features = set(builder.info.features)
    except Exception as error:  # TFDS raises exceptions of many classes
        raise InputError(f"cannot read the dataset in {folder}: {str(error).splitlines()[0]}") from error
    if not features >= _FEATURES:
        missing = ", ".join(sorted(_FEATURES - features))
        raise InputError(f"the dataset in {folder} is not one of spectrodiff's: its records have no {missing}")
    return Dataset(name, folder, builder)


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the prepared versions in a folder, oldest first, or the folder itself if it is one."""
    if (folder / "dataset_info.json").is_file():
        return [folder]
    found = [path for path in _folders(folder) if (path / "dataset_info.json").is_file()]
    numbered = [path for path in found if path.name.replace(".", "").isdecimal()]  # the others are unfinished
    return sorted(numbered, key=lambda path: [int(number) for number in path.name.split(".")])


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
