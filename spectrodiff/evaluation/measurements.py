"""Measurements of songs, and the figures of an evaluation that are computed from them.

A system is a source of audio for a song, such as the synthesizer or the recording. Measurements of each song by each
system are made once and stored, so that those of several processes can be joined: beside its songs, a workdir holds
`scores/NAME.json` and `embeddings/MODEL/NAME.npz` for each song, and `transcription/MODEL/NAME.json` for songs and
stems. Figures are means, distances and intervals over songs. A figure that is undefined is None, never NaN.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from spectrodiff.evaluation.embeddings import Embedding, resample
from spectrodiff.evaluation.frechet import (
    Gaussian,
    frechet_distance,
    frechet_infinity,
    frechet_interval,
    kernel_distance,
    outliers,
    pool,
    song_distances,
)
from spectrodiff.evaluation.reconstruction import compare, embedding_distance, mean_scores
from spectrodiff.evaluation.rendering import (
    ENCODED,
    SOUNDFONT,
    SYNTHESISED,
    SYSTEMS,
    TRUE,
    SongMetadata,
    Spent,
    read_arrays,
    read_json,
    song_path,
)
from spectrodiff.evaluation.songs import Audio, Song
from spectrodiff.evaluation.transcription import (
    DRUMS,
    Matches,
    Scores,
    Transcriber,
    add_scores,
    relative_to_true,
    score_audio,
)
from spectrodiff.files import nan_to_none, replacing, write_json

Frames = Float[np.ndarray, "_n d"]
_RESAMPLES = 200  # of the bootstrap, with which the ends of a 95 % interval vary by about a tenth of its width
Figures = dict[str, Any]  # by name; numbers, pairs of them, or None


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measurements of a song.

    `scores` has by system the scores of `reconstruction.compare` and, for each embedding, `l2/MODEL`, the mean distance
    of its frames from those of the true audio. `notes` has by system the scores of transcribed notes, and is empty if
    none were transcribed. `embedded` has by model and then by system the frames [n, dims] of the embedding.
    """

    name: str
    scores: dict[str, dict[str, float | None]]
    notes: dict[str, Scores]
    embedded: dict[str, dict[str, Frames]]


def is_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> bool:
    """Returns whether a workdir holds all measurements of a song by these embeddings and this transcriber."""
    kinds = [("scores", ".json"), *((f"embeddings/{model.name}", ".npz") for model in embeddings)]
    exist = all(song_path(workdir, kind, name, suffix).is_file() for kind, suffix in kinds)
    return exist and (transcriber is None or is_transcribed(workdir, name, transcriber))


def is_transcribed(workdir: pathlib.Path, name: str, transcriber: Transcriber) -> bool:
    """Returns whether a workdir holds the scores of a song's notes by this transcriber."""
    return _transcription_path(workdir, name, transcriber).is_file()


def _transcription_path(workdir: pathlib.Path, name: str, transcriber: Transcriber) -> pathlib.Path:
    return song_path(workdir, f"transcription/{transcriber.name}", name, ".json")


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
    path = song_path(workdir, "scores", song.name, ".json")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {system: compare(sound, audio[TRUE]) for system, sound in audio.items()})
    for embedding in embeddings:
        path = song_path(workdir, f"embeddings/{embedding.name}", song.name, ".npz")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = {system: embedding(resample(sound, embedding.rate)) for system, sound in audio.items()}
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
    path = _transcription_path(workdir, song.name, transcriber)
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = {
        system: {kind: dataclasses.astuple(matches) for kind, matches in scores.items()}
        for system, scores in found.items()
    }
    write_json(path, counts)


def read_measured(
    workdir: pathlib.Path, name: str, embeddings: Sequence[Embedding], transcriber: Transcriber | None
) -> Measurements:
    """Reads the measurements of a song that `measure` wrote.

    Raises:
      InputError: a file is missing or damaged.
    """
    scores = read_json(song_path(workdir, "scores", name, ".json"))
    embedded = {}
    for model in embeddings:
        path = song_path(workdir, f"embeddings/{model.name}", name, ".npz")
        embedded[model.name] = frames = read_arrays(path, list(scores))
        for system, embedded_audio in frames.items():
            scores[system][f"l2/{model.name}"] = embedding_distance(embedded_audio, frames[TRUE])
    notes = read_transcribed(workdir, name, transcriber) if transcriber else {}
    return Measurements(name, scores, notes, embedded)


def read_transcribed(workdir: pathlib.Path, name: str, transcriber: Transcriber) -> dict[str, Scores]:
    """Reads the scores of a song's notes by system that `transcribe` wrote.

    Raises:
      InputError: the file is missing or damaged.
    """
    kept = read_json(_transcription_path(workdir, name, transcriber))
    return {system: {kind: Matches(*numbers) for kind, numbers in counts.items()} for system, counts in kept.items()}


def results(
    songs: Sequence[SongMetadata],
    measured: Sequence[Measurements],
    embeddings: Sequence[Embedding],
    remarks: Sequence[str] = (),
    transcriber: Transcriber | None = None,
    stems: Sequence[tuple[str, dict[str, Scores]]] = (),
) -> dict[str, Any]:
    """Computes all figures of an evaluation as JSON values: by system, by song, and by instrument family.

    For each embedding these are `frechet/MODEL`, `frechet_interval/MODEL` (95 %), `frechet_infinity/MODEL` with its
    `r2/MODEL`, `kernel/MODEL` and `l2/MODEL`; for each kind of note scores `precision/KIND`, `recall/KIND`, `f1/KIND`,
    `true_f1/KIND` and `ratio/KIND`; and the means of the scores of `reconstruction.compare`. `stems` are pairs of an
    instrument family and the scores of a stem by system.
    """
    shown = [name for name in SYSTEMS if name != SOUNDFONT or any(name in song.scores for song in measured)]
    systems = {system: _mean_figures(measured, system) for system in shown}
    per_song = [_song_figures(song, scores) for song, scores in zip(songs, measured, strict=True)]
    remarks = [*remarks, *_silences(songs, measured)]
    for model in embeddings:
        frames = [song.embedded[model.name] for song in measured]
        with threadpool_limits(1, user_api="blas"):  # matrices this small take 6 ms on one thread, 150 on many
            figures, distances, messages = _distribution_figures(frames, model.name)
        remarks += messages
        for system, values in figures.items():
            systems[system] |= values
        outlying = outliers(distances)
        for index, (row, distance) in enumerate(zip(per_song, distances, strict=True)):
            row[f"frechet/{model.name}"] = distance
            row["outlier"] = row.get("outlier", False) or index in outlying
    systems[SYNTHESISED] |= {"spectrogram_speed": _speed([song.spectrogram for song in songs])}
    for system in (SYNTHESISED, ENCODED):
        systems[system]["vocoder_speed"] = _speed([song.vocoder for song in songs])
    seconds = sum(song.seconds for song in songs)
    return nan_to_none(
        {
            "songs": len(songs),
            "seconds": seconds,
            "dropped_notes": sum(song.dropped for song in songs),
            "batch": sorted({song.batch for song in songs}),
            "embeddings": {model.name: {"licence": model.licence, "hop": model.hop} for model in embeddings},
            "transcriber": transcriber and {"name": transcriber.name, "instruments": transcriber.instruments},
            "remarks": list(dict.fromkeys(remarks)),
            "systems": systems,
            "families": _families(stems),
            "per_song": per_song,
        }
    )


def _mean_figures(measured: Sequence[Measurements], system: str) -> Figures:
    """Returns the figures of a system that are means over songs, and those of notes, from counts over all songs."""
    songs = [song for song in measured if system in song.scores]
    figures = mean_scores([song.scores[system] for song in songs])
    transcribed = [song for song in songs if song.notes]
    ours, true = (add_scores([song.notes[name] for song in transcribed]) for name in (system, TRUE))
    return figures | _note_figures(ours, true)


def _note_figures(ours: Scores, true: Scores) -> Figures:
    return {
        f"{name}/{kind}": value for kind in ours for name, value in relative_to_true(ours[kind], true[kind]).items()
    }


def _families(stems: Sequence[tuple[str, dict[str, Scores]]]) -> dict[str, Figures]:
    """Returns the scores of the stems of each family: those of drum hits for drums, of note onsets for the others."""
    families = {}
    for family in sorted({family for family, _ in stems}):
        kind = DRUMS if family == DRUMS else "onset"
        of_family = [scores for name, scores in stems if name == family]
        ours, encoded, true = (
            add_scores([scores[system] for scores in of_family])[kind] for system in (SYNTHESISED, ENCODED, TRUE)
        )
        families[family] = {"stems": len(of_family), "encoded_f1": encoded.f1, **relative_to_true(ours, true)}
    return families


def _silences(songs: Sequence[SongMetadata], measured: Sequence[Measurements]) -> list[str]:
    """Returns remarks that name silent songs, as silence may be the only cause of an undefined or zero figure."""
    true = [song.name for song in measured if song.scores[TRUE]["tone"] is None]
    synthesised = [song.name for song in songs if song.silent]
    silent = {"The true audio": true, "What was synthesised": synthesised}
    return [f"{what} of {', '.join(names)} is silent." for what, names in silent.items() if names]


def _song_figures(song: SongMetadata, measured: Measurements) -> Figures:
    notes = _note_figures(measured.notes[SYNTHESISED], measured.notes[TRUE]) if measured.notes else {}
    facts = {"name": song.name, "seconds": song.seconds, "seed": song.seed, "dropped_notes": song.dropped}
    return facts | measured.scores[SYNTHESISED] | notes


def _distribution_figures(
    songs: Sequence[dict[str, np.ndarray]], model: str
) -> tuple[dict[str, Figures], list, list[str]]:
    """Returns the distances of an embedding's frames by system, those of each synthesised song, and warnings.

    `songs` are the frames of each song by system.
    """
    figures, distances, messages = {}, [None] * len(songs), []
    true = [Gaussian.of(song[TRUE]) for song in songs]
    reference, frames_true = pool(true), np.concatenate([song[TRUE] for song in songs])
    if not np.ptp(frames_true, axis=0).any():
        return {}, distances, [f"The true audio makes no two different frames of {model}: no distance is defined."]
    for system in tqdm(SYSTEMS, f"distances by {model}", unit="system", delay=2.0):
        if any(system not in song for song in songs):
            continue
        ours = [Gaussian.of(song[system]) for song in songs]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures[system] = {f"frechet/{model}": frechet_distance(reference, pool(ours))}
        messages += [str(warning.message) for warning in caught]
        if system == TRUE:  # other distances of the reference from itself are meaningless
            continue
        frames = np.concatenate([song[system] for song in songs])
        extrapolation = frechet_infinity(reference, frames)
        figures[system] |= {
            f"frechet_interval/{model}": frechet_interval(true, ours, resamples=_RESAMPLES),
            f"frechet_infinity/{model}": extrapolation and extrapolation.distance,
            f"r2/{model}": extrapolation and extrapolation.r2,
            f"kernel/{model}": kernel_distance(frames_true, frames),
        }
        if system == SYNTHESISED:
            distances = song_distances(reference, ours)
    return figures, distances, messages


def _speed(spent: Sequence[Spent]) -> float | None:
    """Returns the seconds of computing per second of audio, or None if nothing was timed."""
    seconds, audio = map(sum, zip(*spent, strict=True)) if spent else (0.0, 0.0)
    return seconds / audio if audio else None
