"""The systems that are compared with true audio, and the measurements of each song by each of them.

Measurements are made once and kept, so that those of several processes can be joined: a workdir holds, beside its
songs, `scores/NAME.json` and `embeddings/MODEL/NAME.npz` for each song, and `transcription/MODEL/NAME.json` for songs
and stems.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.soundfont import play
from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import Embedding, resample
from spectrodiff.evaluation.reconstruction import compare, embedding_distance
from spectrodiff.evaluation.runs import RenderedSong, read_arrays, song_path
from spectrodiff.evaluation.songs import Song
from spectrodiff.evaluation.transcription import Matches, Scores, Transcriber, score_audio
from spectrodiff.files import replacing, write_json

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
_QUIETEST = 1e-3  # root mean square of the white noise where the true audio is silent

Audio = Float[np.ndarray, " _s"]
Frames = Float[np.ndarray, "_n d"]


def system_audio(
    song: Song, rendered: RenderedSong, wrong: Audio | None = None, soundfont: str | None = None
) -> dict[str, Audio]:
    """Returns the audio of a song by each of SYSTEMS, float32 [samples] at SAMPLE_RATE.

    Without `wrong`, the audio of another song, and without `soundfont`, the path of a SoundFont, the systems that need
    them are left out. All audio is cut to the shorter of true and rendered audio; what the SoundFont plays, and white
    noise, have the root mean square of the true audio.

    Raises:
      InputError: the SoundFont cannot be played.
    """
    length = min(len(song.audio), len(rendered.audio))
    level = _rms(song.audio[:length])
    noise = max(_QUIETEST, level) * np.random.default_rng(rendered.seed).standard_normal(length)
    audio = {SYNTHESISED: rendered.audio, TRUE: song.audio, ENCODED: rendered.encoded, WRONG: wrong, NOISE: noise}
    if soundfont is not None:
        played = play(song.notes, soundfont)[:length]
        audio[SOUNDFONT] = level / max(_rms(played), 1e-9) * played
    return {system: audio[system][:length].astype(np.float32) for system in SYSTEMS if audio.get(system) is not None}


def _rms(audio: Audio) -> float:
    return float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measurements of a song.

    `scores` holds by system the scores of `reconstruction.compare` and, for each embedding, `l2/MODEL`, the mean
    distance of its frames from those of the true audio. `notes` holds by system the scores of transcribed notes, and
    is empty where none were transcribed. `embedded` holds the frames [n, dims] of each embedding by system.
    """

    name: str
    scores: dict[str, dict[str, float | None]]
    notes: dict[str, Scores]
    embedded: dict[str, dict[str, Frames]]  # by model, then system


def is_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> bool:
    """Whether a workdir holds all measurements of a song by these embeddings and this transcriber."""
    kinds = [("scores", ".json"), *((f"embeddings/{model.name}", ".npz") for model in embeddings)]
    there = all(song_path(workdir, kind, name, suffix).is_file() for kind, suffix in kinds)
    return there and (transcriber is None or is_transcribed(workdir, name, transcriber))


def is_transcribed(workdir: pathlib.Path, name: str, transcriber: Transcriber) -> bool:
    """Whether a workdir holds the scores of a song's notes by this transcriber."""
    return song_path(workdir, f"transcription/{transcriber.name}", name, ".json").is_file()


def measure(
    workdir: pathlib.Path,
    song: Song,
    audio: dict[str, Audio],
    embeddings: Sequence[Embedding],
    transcriber: Transcriber | None,
) -> None:
    """Measures the `audio` of a song by system, and writes the measurements that `workdir` does not hold yet.

    Raises:
      InputError: a file cannot be written, or notes are to be scored and mir_eval is not installed.
    """
    path = _path(workdir, "scores", song.name, ".json")
    if not path.is_file():
        write_json(path, {system: compare(sound, audio[TRUE]) for system, sound in audio.items()})
    for embedding in embeddings:
        path = _path(workdir, f"embeddings/{embedding.name}", song.name, ".npz")
        if not path.is_file():
            frames = {system: embedding(_at_rate(sound, embedding)) for system, sound in audio.items()}
            with replacing(path) as temporary:
                np.savez_compressed(temporary, **frames)
    if transcriber and not is_transcribed(workdir, song.name, transcriber):
        transcribe(workdir, song, audio, transcriber)


def transcribe(workdir: pathlib.Path, song: Song, audio: dict[str, Audio], transcriber: Transcriber) -> None:
    """Transcribes the `audio` of a song by system, scores the notes, and writes the scores.

    Raises:
      InputError: the file cannot be written, or mir_eval is not installed.
    """
    found = {system: score_audio(transcriber, sound, song.notes) for system, sound in audio.items()}
    path = _path(workdir, f"transcription/{transcriber.name}", song.name, ".json")
    write_json(path, {system: _counts(scores) for system, scores in found.items()})


def _at_rate(audio: Audio, embedding: Embedding) -> Audio:
    return audio if embedding.rate == SAMPLE_RATE else resample(audio, embedding.rate)


def read_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> Measurements:
    """Reads the measurements of a song that `measure` wrote.

    Raises:
      InputError: a file is missing or damaged.
    """
    scores = _read(workdir, "scores", name)
    embedded = {}
    for model in embeddings:
        path = song_path(workdir, f"embeddings/{model.name}", name, ".npz")
        embedded[model.name] = frames = read_arrays(path, list(scores))
        for system, ours in frames.items():
            scores[system][f"l2/{model.name}"] = embedding_distance(ours, frames[TRUE])
    notes = read_transcribed(workdir, name, transcriber) if transcriber else {}
    return Measurements(name, scores, notes, embedded)


def read_transcribed(workdir: pathlib.Path, name: str, transcriber: Transcriber) -> dict[str, Scores]:
    """Reads the scores of a song's notes by system that `transcribe` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    kept = _read(workdir, f"transcription/{transcriber.name}", name)
    return {system: {kind: Matches(*numbers) for kind, numbers in counts.items()} for system, counts in kept.items()}


def _counts(scores: Scores) -> dict[str, tuple[int, ...]]:
    return {kind: dataclasses.astuple(matches) for kind, matches in scores.items()}


def _path(workdir: pathlib.Path, kind: str, name: str, suffix: str) -> pathlib.Path:
    (workdir / kind).mkdir(parents=True, exist_ok=True)
    return song_path(workdir, kind, name, suffix)


def _read(workdir: pathlib.Path, kind: str, name: str) -> dict:
    path = song_path(workdir, kind, name, ".json")
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}; delete it and run again") from error
