"""Rendering of a song in chunks that the page fetches while the rest is still being rendered."""

import contextlib
import functools
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib.image
import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import LOG_CEILING, LOG_FLOOR, SAMPLE_RATE
from spectrodiff.audio.spool import AudioSpool
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import RELEASE_SECONDS
from spectrodiff.notes.midi import Notes, write_midi
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.synthesizer import Synthesizer

AUDIO_FORMATS = (".wav", ".flac")


@functools.lru_cache(maxsize=2)  # a visitor who compares two keeps both
def load(checkpoint: str, vocoder: str | None) -> Synthesizer:
    """Loads a synthesizer, or returns the one that is loaded; see `Synthesizer.from_pretrained`."""
    return Synthesizer.from_pretrained(checkpoint, vocoder)


def sampling_controls(checkpoint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the properties of the sliders of steps and guidance, hidden if the checkpoint's decoder lacks them.

    They begin at the checkpoint's defaults.

    Raises:
      InputError: the checkpoint does not exist or cannot be read.
    """
    decoder = open_checkpoint(find_checkpoint(checkpoint)).config.decoder
    steps, guidance = (getattr(decoder.sampling, name, None) for name in ("steps", "guidance"))
    fewest = 1
    with contextlib.suppress(InputError):
        decoder.sampled(steps=0)
        fewest = 0
    return (
        {
            "label": "Steps",
            "info": "how often the sound is refined; more take longer",
            **{"minimum": fewest, "maximum": max(100, steps or 0), "step": 1},
            **{"value": fewest if steps is None else steps, "visible": steps is not None},
        },
        {
            "label": "Guidance",
            "info": "exaggerates what the notes ask for; 1 does not",
            **{"minimum": 0, "maximum": max(10, guidance or 0), "step": 0.1},
            **{"value": 1 if guidance is None else guidance, "visible": guidance is not None},
        },
    )


class Progress(NamedTuple):
    """How much of a song has been rendered.

    The song's folder has `chunks` audio files, called 0.pcm, 1.pcm and so on, and `mels` pictures, called 0.png and so
    on. `seconds` is the duration of that audio, `total` that of the whole song, and `spent` the time since the
    rendering began. `files` are the whole song's files, which are there when it is finished.
    """

    chunks: int
    mels: int
    seconds: float
    total: float
    spent: float
    files: tuple[pathlib.Path, ...] = ()


def render(
    synthesizer: Synthesizer, notes: Notes, folder: pathlib.Path, name: str, **options: Any
) -> Iterator[Progress]:
    """Renders a piece into `folder`, which it makes, and yields the progress after every chunk of audio.

    Chunks are raw 16-bit little-endian mono at SAMPLE_RATE. Then the whole song follows as files called `name`, one for
    each of AUDIO_FORMATS, at the level "loudness", and the notes as MIDI. If the iterator is closed before, or an error
    ends it, the folder is removed. If somebody else removes the folder, the iterator ends. `options` are those of
    `Synthesizer.mels`.

    Raises:
      InputError: a window has too many notes, an option is out of range, or the disk is full.
    """
    start, total, finished = time.perf_counter(), notes.total_time + RELEASE_SECONDS, False
    chunks = mels = 0
    waiting = []

    def sampled() -> Iterator[Float[np.ndarray, "_t m"]]:
        for mel in synthesizer.mels(notes, **options):
            waiting.append(mel)
            yield mel

    def progress(files: tuple[pathlib.Path, ...] = ()) -> Progress:
        return Progress(chunks, mels, spool.samples / SAMPLE_RATE, total, time.perf_counter() - start, files)

    folder.mkdir(parents=True)
    try:
        with AudioSpool() as spool, contextlib.closing(sampled()) as windows:
            for audio in synthesizer.vocoder.stream(windows):
                if not folder.exists():  # the visitor has left
                    return
                spool.write(audio)
                (folder / f"{chunks}.pcm").write_bytes((32767 * audio.clip(-1, 1)).astype("<i2").tobytes())
                chunks += 1
                for mel in waiting:
                    _draw(folder / f"{mels}.png", mel)
                    mels += 1
                waiting.clear()
                yield progress()
            files = tuple(folder / f"{name}{suffix}" for suffix in (*AUDIO_FORMATS, ".mid"))
            for file in files[:-1]:
                spool.save(file, "loudness")
            write_midi(notes, files[-1])
            finished = True
            yield progress(files)
    finally:
        if not finished:
            shutil.rmtree(folder, ignore_errors=True)


def _draw(path: pathlib.Path, mel: Float[np.ndarray, "t m"]) -> None:
    """Draws an unscaled log-mel as a PNG of a pixel for each value, low frequencies at the bottom."""
    matplotlib.image.imsave(path, mel.T, origin="lower", cmap="magma", vmin=LOG_FLOOR, vmax=LOG_CEILING)
