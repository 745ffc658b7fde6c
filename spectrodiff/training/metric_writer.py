"""The metric writer of training runs: scalars as JSON lines, and scalars, images, audio and text for TensorBoard."""

import contextlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.files import write_text

_FLUSH_EVERY = 10.0  # seconds between flushes of TensorBoard events; log.jsonl is not buffered


class MetricWriter:
    """Writes `workdir/log.jsonl` and `workdir/tensorboard`.

    Each call of `write_scalars` appends a line {"step": n, name: value, ...} to `log.jsonl`. A run that resumes at
    `step` drops the entries of later steps, which it will write again, and an incomplete last line. A new run passes
    step -1. In a run of several processes, only one may create a writer.

    Raises:
      InputError: `workdir` cannot be written to. All methods raise it too.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        from tensorboardX import RecordWriter  # a tenth of a second
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._workdir = pathlib.Path(workdir)
        path, events = self._workdir / "log.jsonl", self._workdir / "tensorboard"
        with self._writing():
            _drop_later(path, step)
            self._rows = path.open("ab", buffering=0)  # a buffer that a full disk refused would be written on closing
            events.mkdir(exist_ok=True)
            # Not SummaryWriter, which writes in a thread: it hangs if the thread died because the disk was full.
            self._events = RecordWriter(str(events / f"events.out.tfevents.{time.time_ns()}"))
        self._flushed = time.monotonic()
        self._write(Event(file_version="brain.Event:2"))
        # On this event, TensorBoard discards what earlier files contain of this step and later ones.
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write_scalars(self, step: int, figures: Mapping[str, Real]) -> None:
        """Writes scalars to `log.jsonl` and to TensorBoard."""
        from tensorboardX.summary import scalar

        figures = {name: float(value) for name, value in figures.items()}
        with self._writing():
            self._rows.write((json.dumps({"step": step, **figures}) + "\n").encode())
        self._summarize(step, [scalar(name, value) for name, value in figures.items()])

    def write_images(self, step: int, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        """Writes RGB images to TensorBoard."""
        from tensorboardX.summary import image

        self._summarize(step, [image(name, pixels, dataformats="HWC") for name, pixels in images.items()])

    def write_audio(self, step: int, sounds: Mapping[str, Float32[np.ndarray, " _s"]]) -> None:
        """Writes audio at SAMPLE_RATE to TensorBoard, clipped to [-1, 1]."""
        from tensorboardX.summary import audio

        self._summarize(step, [audio(name, sound.clip(-1.0, 1.0), SAMPLE_RATE) for name, sound in sounds.items()])

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts to TensorBoard, verbatim and in a monospaced font."""
        from tensorboardX.summary import text

        verbatim = {name: "\n".join("    " + line for line in words.splitlines()) for name, words in texts.items()}
        self._summarize(step, [text(name, words) for name, words in verbatim.items()])

    def close(self) -> None:
        """Flushes and closes the files."""
        with self._writing():
            self._rows.close()
            self._events.close()

    def _summarize(self, step: int, summaries: list[Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [value for summary in summaries for value in summary.value]
        self._write(Event(step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > _FLUSH_EVERY:
            with self._writing():
                self._events.flush()
            self._flushed = time.monotonic()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        with self._writing():
            self._events.write(event.SerializeToString())

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"cannot write to workdir {self._workdir}: {error.strerror or error}") from error


def _drop_later(path: pathlib.Path, step: int) -> None:
    """Removes incomplete lines of a log, and those of steps after `step`."""
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    kept = "".join(f"{line}\n" for line in text.splitlines() if _step_of(line) <= step)
    if kept != text:
        write_text(path, kept)


def _step_of(line: str) -> Real:
    try:
        return json.loads(line)["step"]
    except (ValueError, TypeError, KeyError):  # an incomplete line
        return float("inf")
