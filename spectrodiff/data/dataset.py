"""Prepared datasets: opened by name, read record by record in any order, without TensorFlow."""

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
from spectrodiff.files import replacing, utf8_path
from spectrodiff.notes.sequence import with_program

_FEATURES = {"name", "audio", "notes", "stems"}
_READERS = 8  # threads that look through a split whose lengths are not known yet


@dataclasses.dataclass(frozen=True)
class Records(Sequence):
    """The records of one split, as `recordings.encode` made them, in the order in which they lie on disk.

    With a `program`, all notes but drums are played on it, whatever the records on disk say.
    """

    dataset: str
    split: str
    folder: pathlib.Path
    source: Any  # of TFDS
    program: int | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One record.

        Raises:
          InputError: its file is damaged.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self.source[index]
        except Exception as error:  # array_record and protobuf raise what they like
            why = str(error).splitlines()[0]
            raise InputError(f"cannot read {self.folder}: record {index} of {self.split} is damaged ({why})") from error
        columns = record["stems"]
        stems = zip(columns["audio"], columns["notes"], strict=True)
        stems = [{"audio": audio, "notes": self._relabelled(notes)} for audio, notes in stems]
        return {**record, "notes": self._relabelled(record["notes"]), "stems": stems}

    def _relabelled(self, notes: bytes) -> bytes:
        return notes if self.program is None else with_program(notes, self.program)

    @functools.cached_property
    def samples(self) -> Int[np.ndarray, " records"]:
        """The length of every recording, in samples.

        Looking needs every record read, so the first to look leaves a file beside the dataset for the next.
        """
        path = self.folder / f"lengths-{self.split}.json"
        with contextlib.suppress(OSError, TypeError, ValueError):  # not there yet, or damaged: look again
            lengths = np.asarray(json.loads(path.read_text()), np.int64)
            if lengths.shape == (len(self),):
                return lengths
        with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
            lengths = pool.map(lambda index: count_samples(self[index]["audio"]), range(len(self)))
            progress = tqdm(lengths, f"lengths of {self.dataset}", len(self), unit="piece", mininterval=1.0, delay=2.0)
            lengths = np.array(list(progress), np.int64)
        with contextlib.suppress(InputError), replacing(path) as temporary:  # a disk that is only read from will do
            temporary.write_text(json.dumps(lengths.tolist()) + "\n")
        return lengths


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset: `dataset["train"]` are the records of its train split."""

    name: str
    folder: pathlib.Path
    builder: Any  # of TFDS

    @property
    def splits(self) -> list[str]:
        """The splits that hold something."""
        return [name for name, split in self.builder.info.splits.items() if split.num_examples]

    def __getitem__(self, split: str) -> Records:
        """The records of a split.

        Raises:
          InputError: there is no such split, it is empty, or a file of it is missing.
        """
        if split not in self.splits:
            held = ", ".join(self.splits) or "nothing"
            raise InputError(f"the dataset in {self.folder} has no records in a {split!r} split; it holds {held}")
        for path in map(pathlib.Path, self.builder.info.splits[split].filepaths):
            if not path.is_file():
                raise InputError(f"{path} is missing: delete {self.folder} and prepare {self.name} again")
        return Records(self.name, split, self.folder, self.builder.as_data_source(split))


def open_dataset(data_dir: str | pathlib.Path, name: str) -> Dataset:
    """The dataset that `spectrodiff prepare` left in `data_dir/name/VERSION`: the newest, or that of `name/VERSION`.

    Raises:
      InputError: there is none of that name, it holds something else than music, `data_dir` is an address or no
        UTF-8, or TFDS is not installed.
    """
    try:
        import tensorflow_datasets as tfds  # heavy: half a second
    except ImportError as error:
        raise InputError('reading datasets needs TFDS: pip install "spectrodiff[data]"') from error
    utf8_path(data_dir)
    data_dir = pathlib.Path(data_dir)
    versions = _versions(data_dir / name)
    if not versions:
        found = ", ".join(sorted(path.name for path in _folders(data_dir) if _versions(path))) or "none"
        command = f"spectrodiff prepare {name.split('/')[0]} --data_dir {data_dir}"
        raise InputError(f"no dataset {name!r} in {data_dir} (there: {found}); make it with `{command}`")
    folder = versions[-1]
    try:
        builder = tfds.builder_from_directory(folder)
        features = set(builder.info.features)
    except Exception as error:  # TFDS raises what it likes
        raise InputError(f"cannot read the dataset in {folder}: {str(error).splitlines()[0]}") from error
    if not features >= _FEATURES:
        missing = ", ".join(sorted(_FEATURES - features))
        raise InputError(f"the dataset in {folder} is not one of spectrodiff's: its records have no {missing}")
    return Dataset(name, folder, builder)


def _versions(folder: pathlib.Path) -> list[pathlib.Path]:
    """The prepared versions in a folder, oldest first; the folder itself if it is one."""
    if (folder / "dataset_info.json").is_file():
        return [folder]
    found = [path for path in _folders(folder) if (path / "dataset_info.json").is_file()]
    numbered = [path for path in found if path.name.replace(".", "").isdecimal()]  # the rest were never finished
    return sorted(numbered, key=lambda path: [int(number) for number in path.name.split(".")])


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
