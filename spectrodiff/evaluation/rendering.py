"""Rendering of the songs of a dataset by a synthesizer, and the systems that it is compared with.

A workdir holds `run.json`, the settings with which its songs were made, and for each song `songs/NAME.npz` (mel and
audio) and `songs/NAME.json` (metadata). They are written in this order, so that an interrupted evaluation can be
continued: a song with metadata is complete.
"""

import dataclasses
import json
import pathlib
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE, log_mel_on_host
from spectrodiff.data.soundfont import play
from spectrodiff.errors import InputError
from spectrodiff.evaluation.songs import Audio, Song, Songs, Stems
from spectrodiff.files import check_writable, file_name, local_path, replacing, write_json
from spectrodiff.notes.midi import Notes
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.vocoder.streaming import Vocoder

SYNTHESISED, TRUE, ENCODED = "synthesised", "true", "encoded"
SOUNDFONT, WRONG, NOISE = "soundfont", "wrong_song", "noise"
SYSTEMS = {
    SYNTHESISED: "Synthesised",
    TRUE: "True audio",
    ENCODED: "True mel through the vocoder",
    SOUNDFONT: "The notes by a SoundFont",
    WRONG: "True audio of another song",
    NOISE: "White noise",
}
_MIN_NOISE_RMS = 1e-3  # of the white noise, for true audio that is silent

Mel = Float[np.ndarray, "_t m"]
Spent = tuple[float, float]  # seconds of computing, and seconds of the audio that was made in them


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings that all songs of a workdir have in common.

    `weights` is the fingerprint of the spectrogram model's parameters, and `vocoder` the identity of the vocoder, so
    that other weights at the same path are noticed. `seconds` is the length that songs are cut to (None: whole songs),
    and `soundfont` the path of the SoundFont that plays the notes for comparison (None: there is none).
    """

    checkpoint: str
    weights: str
    vocoder: str
    dataset: str
    split: str
    seconds: float | None
    sampling: dict[str, Any]
    seed: int
    soundfont: str | None = None

    def claim(self, workdir: pathlib.Path) -> None:
        """Creates the workdir and writes its run.json, or checks that the run.json there has the same settings.

        Raises:
          InputError: the workdir holds songs that were made with other settings, cannot be created or written, or is an
            address.
        """
        try:
            (local_path(workdir) / "songs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {workdir}: {error.strerror or error}") from error
        check_writable(workdir / "songs" / "run.json")  # before the first song is rendered
        path, ours = workdir / "run.json", dataclasses.asdict(self)
        if not path.exists():
            write_json(path, ours)
            return
        theirs = named_settings(read_json(path))
        for name, value in named_settings(ours).items():
            if theirs.get(name) != value:
                raise InputError(
                    f"{workdir} holds songs made with {name} {theirs.get(name)}, not {value}; give another workdir"
                )


def named_settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings in the content of a run.json by name, with the sampling options among the others."""
    return {name: value for name, value in run.items() if name != "sampling"} | run.get("sampling", {})


def song_seed(seed: int, name: str) -> int:
    """Returns the random seed of one song: `seed`, with the CRC-32 of the song's name folded in, below 2^32.

    With it, `Synthesizer` renders the same song. It depends on nothing else, so that a song is the same whatever the
    other songs of its batch, the order of songs and the number of processes.
    """
    return int(jax.random.bits(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))))


@dataclasses.dataclass(frozen=True)
class SongMetadata:
    """What is stored of a rendered song besides its mel and audio.

    `seed` is the one it was rendered with, `seconds` the length of the true audio, `dropped` the number of notes that
    were left out of windows with too many tokens, `batch` the number of songs rendered at once, and `silent` whether
    all samples of the audio are zero. `spectrogram` and `vocoder` are the times that the model and the vocoder took,
    without calls that may have compiled a program: the first window of each program, and the first chunk of each song
    from the vocoder.
    """

    name: str
    seed: int
    seconds: float
    dropped: int
    batch: int
    spectrogram: Spent
    vocoder: Spent
    silent: bool

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "SongMetadata":
        """Reads the metadata of a song that `RenderedSong.save` wrote.

        Raises:
          InputError: the file is missing or damaged, or of another version.
        """
        return cls(**_read_metadata(workdir, name))


@dataclasses.dataclass(frozen=True)
class RenderedSong(SongMetadata):
    """A song as the model and the vocoder made it.

    `mel` is the model's unscaled log-mel [t, MEL_BINS]. `audio` is the vocoder's output for it, and `encoded` the
    vocoder's output for the log-mel of the true audio, both float32 at SAMPLE_RATE and stored with 16 bits.
    """

    mel: Mel
    audio: Audio
    encoded: Audio

    def save(self, workdir: pathlib.Path) -> None:
        """Writes the song into a workdir that `Run.claim` has created.

        Raises:
          InputError: a file cannot be written.
        """
        with replacing(song_path(workdir, "songs", self.name, ".npz")) as temporary:
            np.savez_compressed(temporary, mel=self.mel, audio=_pcm(self.audio), encoded=_pcm(self.encoded))
        metadata = {field.name: getattr(self, field.name) for field in dataclasses.fields(SongMetadata)}
        write_json(song_path(workdir, "songs", self.name, ".json"), metadata)  # last, as it marks the song as complete

    @classmethod
    def load(cls, workdir: pathlib.Path, name: str) -> "RenderedSong":
        """Reads a song that `save` wrote.

        Raises:
          InputError: a file is missing or damaged, or of another version.
        """
        arrays = read_arrays(song_path(workdir, "songs", name, ".npz"), ("mel", "audio", "encoded"))
        arrays |= {part: arrays[part].astype(np.float32) / 32767 for part in ("audio", "encoded")}
        return cls(**_read_metadata(workdir, name), **arrays)


def _read_metadata(workdir: pathlib.Path, name: str) -> dict:
    path = song_path(workdir, "songs", name, ".json")
    metadata = read_json(path)
    if set(metadata) != {field.name for field in dataclasses.fields(SongMetadata)}:
        raise InputError(f"{path} is of another version of spectrodiff; delete {workdir}, or give another workdir")
    return metadata | {name: tuple(metadata[name]) for name in ("spectrogram", "vocoder")}


def song_path(workdir: pathlib.Path, kind: str, name: str, suffix: str) -> pathlib.Path:
    """Returns the path of a song's file in the folder `kind` of a workdir; see `file_name`."""
    return workdir / kind / (file_name(name) + suffix)


def is_rendered(workdir: pathlib.Path, name: str) -> bool:
    """Returns whether a workdir holds the complete song of this name."""
    return song_path(workdir, "songs", name, ".json").is_file()


def read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the arrays of these names from an .npz file.

    Raises:
      InputError: the file is missing or damaged, or lacks an array.
    """
    try:
        with np.load(path) as arrays:
            return {name: arrays[name] for name in names}
    except Exception as error:  # zipfile and NumPy raise exceptions of many classes
        raise InputError(f"cannot read {path}; delete it and its neighbours of that name, and run again") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file; raises InputError if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}; delete it and run again") from error


def _pcm(audio: Audio) -> np.ndarray:
    """Converts audio to 16-bit samples as `write_audio` does; audio with a peak above 1 is scaled down as a whole."""
    return np.round(audio / max(1.0, np.abs(audio).max(initial=0.0)) * 32767).astype(np.int16)


def render(
    synthesizer: Synthesizer,
    songs: Songs | Stems,
    chosen: Sequence[int],
    *,
    seed: int,
    batch: int,
    **sampling: Any,
) -> Iterator[RenderedSong]:
    """Renders the `chosen` songs, `batch` of them at once, the longest first, and yields each when it is finished.

    Up to rounding, the mel of a song is that of `synthesizer.mels` with `song_seed(seed, name)`. Notes are dropped from
    windows with too many tokens; see `MelSampler.thin`.

    Raises:
      InputError: a record is damaged, or the model's mel has values that are not finite.
    """
    order, begun = sorted(chosen, key=songs.windows, reverse=True), {}

    def pieces() -> Iterator[tuple[Notes, int]]:
        for place, index in enumerate(order):
            song = songs[index]
            notes, dropped = synthesizer.mel_sampler.thin(song.notes, **sampling)
            begun[place] = song, dropped
            yield notes, song_seed(seed, song.name)

    windows, vocoder = sum(map(songs.windows, order)), synthesizer.vocoder
    for place, (mel, *spent) in synthesizer.mel_sampler.songs(pieces(), batch=batch, windows=windows, **sampling):
        song, dropped = begun.pop(place)
        audio, audio_spent = _play(vocoder, mel)
        encoded, encoded_spent = _play(vocoder, log_mel_on_host(song.audio))
        yield RenderedSong(
            name=song.name,
            seed=song_seed(seed, song.name),
            seconds=len(song.audio) / SAMPLE_RATE,
            dropped=dropped,
            batch=min(batch, len(order)),
            spectrogram=tuple(spent),
            vocoder=(audio_spent[0] + encoded_spent[0], audio_spent[1] + encoded_spent[1]),
            silent=not audio.any(),
            mel=mel,
            audio=audio,
            encoded=encoded[: len(song.audio)],
        )


def _play(vocoder: Vocoder, mel: Float[np.ndarray, "_t m"]) -> tuple[Audio, Spent]:
    """Returns the audio of a mel, and the time spent on it after the first chunk, which may wait for compilation."""
    stream = vocoder.stream([mel])
    chunks = [next(stream)]
    start = time.perf_counter()
    chunks += stream
    seconds = time.perf_counter() - start
    return np.concatenate(chunks), (seconds, sum(map(len, chunks[1:])) / SAMPLE_RATE)


def system_audio(
    song: Song, rendered: RenderedSong, wrong: Audio | None = None, soundfont: str | None = None
) -> dict[str, Audio]:
    """Returns the audio of a song by each of SYSTEMS, float32 [samples] at SAMPLE_RATE.

    `wrong` is the audio of another song, and `soundfont` the path of a SoundFont; without them, the systems that need
    them are left out. All audio is cut to the shorter of true and rendered audio. The audio of the SoundFont and the
    white noise have the root mean square of the true audio.

    Raises:
      InputError: the SoundFont cannot be played.
    """
    length = min(len(song.audio), len(rendered.audio))
    level = _rms(song.audio[:length])
    noise = max(_MIN_NOISE_RMS, level) * np.random.default_rng(rendered.seed).standard_normal(length)
    audio = {SYNTHESISED: rendered.audio, TRUE: song.audio, ENCODED: rendered.encoded, WRONG: wrong, NOISE: noise}
    if soundfont is not None:
        played = play(song.notes, soundfont)[:length]
        audio[SOUNDFONT] = level / max(_rms(played), 1e-9) * played
    return {system: audio[system][:length].astype(np.float32) for system in SYSTEMS if audio.get(system) is not None}


def _rms(audio: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0
