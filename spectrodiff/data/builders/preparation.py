"""Preparation of a dataset from a corpus by several processes; a run that is killed can be continued.

The dataset is written to DATA_DIR/NAME/VERSION, which exists only once it is complete. Until then,
DATA_DIR/NAME_staging holds a file per recording that was read, from which a killed run continues. The bytes of the
dataset depend neither on the number of processes nor on interruptions.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
from tqdm import tqdm

from spectrodiff.data.recordings import SPLITS, Corpus, Entry, encode
from spectrodiff.data.workers import check_workers, parallel_map, worker_count
from spectrodiff.errors import InputError
from spectrodiff.files import local_path, replacing, utf8_path

PACKAGES = ("spectrodiff", "note-seq", "numpy", "scipy", "soundfile", "tensorflow-datasets", "array-record")
SHARD_BYTES = 2**27
_CONTINUE = "fix that and run the same command again: it continues from here"

Staged = Sequence[tuple[Entry, pathlib.Path]]  # recordings, and the files of their records


def prepare(
    corpus: Corpus,
    manual_dir: str | os.PathLike,
    data_dir: str | os.PathLike,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    beam_options: str | None = None,
) -> pathlib.Path:
    """Makes a dataset of the corpus in the folder `manual_dir`; returns its folder, `data_dir/NAME/VERSION`.

    A dataset that exists is kept unless the recordings of the corpus have changed, and replaced if so. `workers` is the
    number of processes, by default one per core. With `skip_bad`, recordings that cannot be used are left out and
    listed as `skipped` in the dataset's metadata.json; those that the corpus leaves out are listed as `known_bad`. With
    `beam_options` ("" for the defaults), Apache Beam reads and writes; such a run cannot be continued. If a corpus has
    a method `report(folder, entries, workers)`, it is called first.

    Raises:
      InputError: `manual_dir` is not the folder of the corpus; a recording cannot be used; `data_dir` cannot be
        written, is full, or has a dataset of this name that was made with other options; or TFDS is not installed.
    """
    try:
        from spectrodiff.data.builders.tfds_builder import VERSION, build_with_beam  # slow to import
    except ImportError as error:
        raise InputError('preparing datasets needs TFDS: pip install "spectrodiff[data]"') from error
    check_workers(workers)
    source, data_dir = local_path(manual_dir).absolute(), utf8_path(data_dir)
    entries = corpus.entries(source)
    if not entries:
        raise InputError(f"{source} holds no recordings of {corpus.name}; name another folder")
    metadata = {
        "source": str(source.relative_to(data_dir) if source.is_relative_to(data_dir) else source),
        "options": json.loads(json.dumps(dataclasses.asdict(corpus))),
        "entries": hashlib.sha256(repr(entries).encode()).hexdigest(),
        "known_bad": corpus.left_out(source) if hasattr(corpus, "left_out") else {},
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "skipped": {},
    }
    folder, staging = data_dir / corpus.name / VERSION, data_dir / f"{corpus.name}_staging"
    if _is_current(folder, metadata):
        shutil.rmtree(staging, ignore_errors=True)
        return folder

    with _locked(staging):
        for name in ("built", "old"):
            shutil.rmtree(staging / name, ignore_errors=True)
        if hasattr(corpus, "report"):
            corpus.report(source, entries, workers)
        if beam_options is None:
            built = _build(corpus, entries, metadata, staging, workers, skip_bad)
        else:
            splits = {split: [entry for entry in entries if entry.split == split] for split in SPLITS}
            splits = {split: part for split, part in splits.items() if part}
            print(f"Beam prepares {len(entries)} recordings of {corpus.name}", flush=True)
            built = build_with_beam(corpus, metadata, staging / "built", splits, skip_bad, beam_options)
        with _writing(staging):
            folder.parent.mkdir(exist_ok=True)
            if folder.exists():
                folder.rename(staging / "old")
            built.rename(folder)
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _is_current(folder: pathlib.Path, wanted: dict[str, Any]) -> bool:
    """Returns whether the dataset exists and has the recordings that the corpus has now.

    Raises:
      InputError: it was made with other options or from another folder.
    """
    if not folder.exists():
        return False
    another = "delete it, or name another --data_dir"
    try:
        found = json.loads((folder / "metadata.json").read_text())
        options, wanted_options = ({"source": info["source"], **info["options"]} for info in (found, wanted))
        entries = found["entries"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder} was not made by `spectrodiff prepare`: {another}") from error
    for name, value in wanted_options.items():
        if options.get(name) != value:
            raise InputError(f"{folder} was prepared with {name} {options.get(name)}, not {value}: {another}")
    return entries == wanted["entries"]


@contextlib.contextmanager
def _locked(staging: pathlib.Path) -> Iterator[None]:
    """Makes the folder `staging`, and locks it against other runs.

    Raises:
      InputError: it cannot be made, or another run has locked it.
    """
    try:
        staging.mkdir(parents=True, exist_ok=True)
        lock = (staging / "lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write in {staging.parent} ({error.strerror}): name another --data_dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another run is at work in {staging}: wait until it is done") from error
        yield


def _build(
    corpus: Corpus,
    entries: Sequence[Entry],
    metadata: dict[str, Any],
    staging: pathlib.Path,
    workers: int | None,
    skip_bad: bool,
) -> pathlib.Path:
    from spectrodiff.data.builders.tfds_builder import build

    made_by = repr((corpus, metadata["packages"]))  # files staged by other versions are not used
    staged = [(entry, staging / hashlib.sha256(f"{made_by}{entry}".encode()).hexdigest()) for entry in entries]
    skipped = _stage(corpus, staged, workers, skip_bad)
    good = [(entry, path) for entry, path in staged if entry.name not in skipped]
    if not good:
        raise InputError(f"nothing of {corpus.name} can be used; for one, {next(iter(skipped.values()))}")
    with _writing(staging), tqdm(total=len(good), desc=f"writing {corpus.name}", unit="piece", mininterval=1.0) as bar:
        splits = {split: [path for entry, path in good if entry.split == split] for split in SPLITS}
        shards = {split: _shards(paths, bar) for split, paths in splits.items() if paths}
        return build(corpus, {**metadata, "skipped": skipped}, staging / "built", shards)


@contextlib.contextmanager
def _writing(staging: pathlib.Path) -> Iterator[None]:
    """Turns errors of writing the dataset into InputErrors."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # array_record raises RuntimeErrors
        raise InputError(f"cannot write in {staging}: {str(error).splitlines()[0]}; {_CONTINUE}") from error


def _stage(corpus: Corpus, staged: Staged, workers: int | None, skip_bad: bool) -> dict[str, str]:
    """Stages the recordings that are not staged yet; returns those that cannot be used, and why."""
    pending = [(entry, path) for entry, path in staged if not path.exists()]
    skipped = {}
    results = parallel_map(functools.partial(_stage_one, corpus), pending, worker_count(workers, len(pending)))
    bar = tqdm(total=len(staged), initial=len(staged) - len(pending), desc=f"reading {corpus.name}", unit="piece")
    with bar, contextlib.closing(results):
        for (entry, _), problem in zip(pending, results, strict=True):
            if problem is not None:
                if not skip_bad:
                    raise InputError(f"{problem} (--skip_bad leaves out what cannot be used)")
                skipped[entry.name] = problem
                bar.set_postfix(skipped=len(skipped))
            bar.update()
    return skipped


def _stage_one(corpus: Corpus, item: tuple[Entry, pathlib.Path]) -> str | None:
    """Writes the record of a recording to its file; returns an error message if it cannot be used."""
    entry, path = item
    try:
        record = encode(corpus.read(entry))
    except InputError as error:
        return str(error)
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(msgpack.packb(record))
    except InputError as error:
        raise InputError(f"{error}; {_CONTINUE}") from error
    return None


def _shards(paths: Sequence[pathlib.Path], bar: tqdm) -> list[Any]:
    """Divides the records in these files evenly into shards of about SHARD_BYTES."""
    count = min(len(paths), max(1, round(sum(path.stat().st_size for path in paths) / SHARD_BYTES)))
    bounds = [len(paths) * shard // count for shard in range(count + 1)]
    return [functools.partial(_records, range(*ends), paths, bar) for ends in itertools.pairwise(bounds)]


def _records(indices: range, paths: Sequence[pathlib.Path], bar: tqdm) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in indices:
        yield index, msgpack.unpackb(paths[index].read_bytes())
        bar.update()
