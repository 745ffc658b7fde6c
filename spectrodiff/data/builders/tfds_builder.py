"""TFDS datasets of whole recordings in array_record files, written and read without TensorFlow.

Importing this module takes half a second.
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
    """Writes the dataset `data_dir/NAME/VERSION` from the `shards` of each split, in order; returns its folder.

    Each shard yields numbers and records as `recordings.encode` returns them. The folder appears once it is complete.
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
    """Writes the same dataset as `build`, read and written by the workers of a Beam runner; returns its folder.

    `options` are command-line options of Beam: "--runner=FlinkRunner --flink_master=host:8081". All workers need the
    corpus and `data_dir` at the same paths. A recording that cannot be read is an error, or with `skip_bad` is listed
    as `skipped` in the metadata.

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
    except Exception as error:  # a worker's exception, or the text of its traceback with the stage of the pipeline
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
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints about downloads
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**options))


class _Writer(writer.ExampleWriter):
    """Writes the same bytes in every process: by default protobuf orders the features of an example arbitrarily."""

    def write(self, path, examples: Iterable[tuple[int, bytes]]) -> None:
        parsed = ((key, tf_example_pb2.Example.FromString(example)) for key, example in examples)
        super().write(path, ((key, example.SerializeToString(deterministic=True)) for key, example in parsed))


class _Builder:
    """The parts common to both builders."""

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


class _Shards(_Builder, tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes shards one after the other. (TFDS' usual builder needs TensorFlow to sort splits of over 1 GB.)"""

    def __init__(self, corpus, metadata, data_dir, shards: Mapping[str, Sequence[Shard]]):
        super().__init__(corpus, metadata, data_dir)
        self._shards = shards

    def _shard_iterators_per_split(self, dl_manager) -> Mapping[str, Sequence[Shard]]:
        return self._shards


class _Beam(_Builder, tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Reads, sorts and writes records with the workers of Beam."""

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
                | beam.Reshuffle()  # otherwise one worker reads them all
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
    """Yields the number and record of an entry, or the error message if it cannot be used."""
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
