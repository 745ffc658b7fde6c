"""What is compared with true audio, and how each song of it scores: measured once and kept, so that runs can be joined.

A workdir holds, beside its songs, `scores/NAME.json`, `transcription/NAME.json` and `embeddings/MODEL/NAME.npz`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError
from spectrodiff.evaluation.embeddings import Embedding, resample
from spectrodiff.evaluation.reconstruction import compare, embedding_distance
from spectrodiff.evaluation.runs import Rendered, Song, read_arrays, song_path
from spectrodiff.evaluation.transcription import Matches, Scores, Transcriber, score_audio
from spectrodiff.files import replacing, write_json

SYNTHESISED, TRUE, ENCODED, WRONG, NOISE = "synthesised", "true", "encoded", "wrong_song", "noise"
SYSTEMS = {
    SYNTHESISED: "Synthesised",
    TRUE: "True audio",
    ENCODED: "True mel through the vocoder",
    WRONG: "True audio of another song",
    NOISE: "White noise",
}
_QUIETEST = 1e-3  # of white noise, where the true audio is silent

Audio = Float[np.ndarray, " _s"]
Frames = Float[np.ndarray, "_n d"]


def system_audio(song: Song, rendered: Rendered, wrong: Audio | None) -> dict[str, Audio]:
    """Audio of all SYSTEMS, but that of another song where there is none, cut to the shorter of true and rendered.

    White noise is as loud as the true audio.
    """
    length = min(len(song.audio), len(rendered.audio))
    level = max(_QUIETEST, float(np.sqrt(np.mean(np.square(song.audio[:length], dtype=np.float64)))))
    noise = level * np.random.default_rng(rendered.seed).standard_normal(length)
    audio = {SYNTHESISED: rendered.audio, TRUE: song.audio, ENCODED: rendered.encoded, WRONG: wrong, NOISE: noise}
    return {system: sound[:length].astype(np.float32) for system, sound in audio.items() if sound is not None}


@dataclasses.dataclass(frozen=True)
class Measured:
    """A song's scores by system; `notes` is empty where nothing was transcribed.

    `scores` are those of `compare`, and of each embedding `l2/MODEL`, its distance from the true audio's.
    """

    name: str
    scores: dict[str, dict[str, float | None]]
    notes: dict[str, Scores]
    embedded: dict[str, dict[str, Frames]]  # by model, then system


def is_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> bool:
    kinds = [("scores", ".json"), *((f"embeddings/{model.name}", ".npz") for model in embeddings)]
    kinds += [("transcription", ".json")] if transcriber else []
    return all(song_path(workdir, kind, name, suffix).is_file() for kind, suffix in kinds)


def measure(
    workdir: pathlib.Path,
    song: Song,
    audio: dict[str, Audio],
    embeddings: Sequence[Embedding],
    transcriber: Transcriber | None,
) -> None:
    """Measures what is not there yet of a song's systems, and keeps it.

    Raises:
      InputError: a file cannot be written, or a transcriber has no mir_eval to be scored by.
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
    path = _path(workdir, "transcription", song.name, ".json")
    if transcriber and not path.is_file():
        found = {system: score_audio(transcriber, sound, song.notes) for system, sound in audio.items()}
        write_json(path, {system: _counts(scores) for system, scores in found.items()})


def _at_rate(audio: Audio, embedding: Embedding) -> Audio:
    return audio if embedding.rate == SAMPLE_RATE else resample(audio, embedding.rate)


def read_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> Measured:
    """Raises InputError for files that are missing or damaged."""
    scores = _read(workdir, "scores", name)
    embedded = {}
    for model in embeddings:
        path = song_path(workdir, f"embeddings/{model.name}", name, ".npz")
        embedded[model.name] = frames = read_arrays(path, list(scores))
        for system, ours in frames.items():
            scores[system][f"l2/{model.name}"] = embedding_distance(ours, frames[TRUE])
    notes = {}
    if transcriber:
        for system, counts in _read(workdir, "transcription", name).items():
            notes[system] = {kind: Matches(*numbers) for kind, numbers in counts.items()}
    return Measured(name, scores, notes, embedded)


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
