"""Corpora as TFDS datasets: array_record files of whole recordings, written and read without TensorFlow.

Importing this takes half a second: do it where it is needed.
"""

import contextlib
import errno
import functools
import io
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import writer
from tensorflow_datasets.proto import tf_example_pb2

from spectrodiff.data.recordings import Corpus, Entry, encode
from spectrodiff.errors import InputError

Record = dict[str, Any]
Shard = Callable[[], Iterator[tuple[int, Record]]]

VERSION = "1.0.0"


def build(
    corpus: Corpus, metadata: Mapping[str, Any], data_dir: pathlib.Path, shards: Mapping[str, Sequence[Shard]]
) -> pathlib.Path:
    """Writes `data_dir/NAME/VERSION`, whose files hold what the `shards` of each split yield, in that order.

    A record is what `recordings.encode` returns. Nothing takes that name until all of it is written.
    """
    builder = _Shards(corpus, metadata, data_dir, shards)
    _run(builder)
    return pathlib.Path(builder.data_dir)


def build_with_beam(
    corpus: Corpus,
    metadata: Mapping[str, Any],
    data_dir: pathlib.Path,
    splits: Mapping[str, Sequence[Entry]],
    skip_bad: bool,
    options: str = "",
) -> pathlib.Path:
    """The same dataset of the same records in the same order, read and written by the workers of a Beam runner.

    `options` are Beam's, as on a command line: "--runner=FlinkRunner --flink_master=host:8081". Each worker has to see
    the corpus and `data_dir` under the same paths. What cannot be read is an error, or with `skip_bad` added to the
    metadata's `skipped`.

    Raises:
      InputError: Beam is not installed, or a recording cannot be used.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError('--beam needs Apache Beam: pip install "spectrodiff[beam]"') from error
    builder = _Beam(corpus, metadata, data_dir, splits, skip_bad)
    try:
        _run(builder, beam_options=PipelineOptions(shlex.split(options)))
    except Exception as error:  # a worker's, as it was or as the text of a traceback, with the place in the pipeline
        bad = re.search(rf"{InputError.__name__}: (.*)", f"{type(error).__name__}: {error}")
        if bad is not None:
            why = bad[1].split(" [while running")[0]
            raise InputError(f"{why} (--skip_bad leaves out what cannot be used)") from error
        if os.strerror(errno.ENOSPC) in str(error):
            raise InputError(f"cannot write in {data_dir}: the disk is full; make room and start again") from error
        raise
    return pathlib.Path(builder.data_dir)


def _run(builder: tfds.core.DatasetBuilder, **options: Any) -> None:
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # it speaks of downloads
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))


class _Writer(writer.ExampleWriter):
    """Writes the same bytes whichever process does: protobuf puts the features of an example in any order."""

    def write(self, path, examples: Iterable[tuple[int, bytes]]) -> None:
        parsed = ((key, tf_example_pb2.Example.FromString(example)) for key, example in examples)
        super().write(path, ((key, example.SerializeToString(deterministic=True)) for key, example in parsed))


class _Common:
    """What is the same whoever writes the files."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, corpus: Corpus, metadata: Mapping[str, Any], data_dir: pathlib.Path):
        self.name = corpus.name
        self._corpus, self._metadata = corpus, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        data = tfds.features.Tensor(shape=(), dtype=np.object_)  # bytes; features.Audio needs TensorFlow
        stems = tfds.features.Sequence({"audio": data, "notes": data})
        return tfds.core.DatasetInfo(
            builder=self,
            description=self._corpus.description,
            homepage=self._corpus.homepage,
            features=tfds.features.FeaturesDict(
                {"name": tfds.features.Text(), "audio": data, "notes": data, "stems": stems}
            ),
            metadata=tfds.core.MetadataDict(self._metadata),
            disable_shuffling=True,
        )

    def _example_writer(self) -> writer.ExampleWriter:
        return _Writer(self.info.file_format)


class _Shards(_Common, tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes shards one after the other. (TFDS' usual builder turns to TensorFlow to sort splits of over 1 GB.)"""

    def __init__(self, corpus, metadata, data_dir, shards: Mapping[str, Sequence[Shard]]):
        super().__init__(corpus, metadata, data_dir)
        self._shards = shards

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Shard]]:
        return self._shards


class _Beam(_Common, tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Has Beam's workers read recordings, and sort and write them."""

    def __init__(self, corpus, metadata, data_dir, splits: Mapping[str, Sequence[Entry]], skip_bad: bool):
        super().__init__(corpus, metadata, data_dir)
        self._splits, self._skip_bad = splits, skip_bad

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(entries, self._skipped(split)) for split, entries in self._splits.items()
        }

    def _generate_examples(self, entries: Sequence[Entry], skipped: pathlib.Path):
        import apache_beam as beam

        @beam.ptransform_fn
        def read(pipeline):
            outputs = (
                pipeline
                | beam.Create(list(enumerate(entries)))
                | beam.Reshuffle()  # or one worker would read them all
                | beam.FlatMap(functools.partial(_read, self._corpus, self._skip_bad)).with_outputs("bad", main="good")
            )
            names = outputs.bad | beam.combiners.ToList()
            names | "WriteBad" >> beam.Map(functools.partial(_write_skipped, skipped))
            return outputs.good

        return read()

    def _download_and_prepare(self, dl_manager, download_config) -> None:
        super()._download_and_prepare(dl_manager, download_config)
        for path in map(self._skipped, self._splits):
            self.info.metadata["skipped"] |= json.loads(path.read_text())
            path.unlink()

    def _skipped(self, split: str) -> pathlib.Path:
        return pathlib.Path(self.data_dir, f"skipped-{split}.json")


def _read(corpus: Corpus, skip_bad: bool, numbered: tuple[int, Entry]) -> Iterator[Any]:
    """The record of an entry with its place, or why there is none."""
    from apache_beam.pvalue import TaggedOutput

    index, entry = numbered
    try:
        record = encode(corpus.read(entry))
    except InputError as error:
        if not skip_bad:
            raise
        yield TaggedOutput("bad", (index, entry.name, str(error)))
    else:
        yield index, record


def _write_skipped(path: pathlib.Path, bad: list[tuple[int, str, str]]) -> None:
    path.write_text(json.dumps({name: why for _, name, why in sorted(bad)}))
