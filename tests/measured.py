"""Two songs of noise, rendered and measured, for tests of measurements and of reports."""

import numpy as np

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.evaluation.measurements import measure, read_measured, results
from spectrodiff.evaluation.rendering import SOUNDFONT, SYSTEMS, RenderedSong, system_audio
from spectrodiff.evaluation.songs import Song
from spectrodiff.notes.midi import Notes

WITHOUT = {name: title for name, title in SYSTEMS.items() if name != SOUNDFONT}  # that of rendered data
NO_NOTES = Notes(*(np.zeros(0) for _ in range(2)), *(np.zeros(0, np.int32) for _ in range(3)), np.zeros(0, bool), 1.0)


class Levels:
    """An embedding in two dimensions: mean and deviation of each tenth of a second."""

    name, identity, rate, hop, dims, licence = "levels", "levels", SAMPLE_RATE, 0.1, 2, "none"

    def __call__(self, audio):
        frames = audio[: len(audio) // 1600 * 1600].reshape(-1, 1600)
        return np.stack([frames.mean(axis=1), frames.std(axis=1)], axis=1)


class Fixed:
    """A transcriber that hears nothing."""

    name, instruments = "fixed", False

    def __call__(self, audio):
        return NO_NOTES


def rendered(name, audio, seed=0):
    spent = (1.0, 4.0)
    facts = (name, seed, len(audio) / SAMPLE_RATE, 2, 4, spent, spent, not audio.any())
    return RenderedSong(*facts, np.zeros((5, 128)), audio, audio / 2)


def noise(seed, seconds=2.0, level=0.1):
    return (level * np.random.default_rng(seed).standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def two_songs(workdir):
    """The two songs as rendered, their measurements, which are in `workdir`, and the results; without transcription."""
    songs, measured = [], []
    for index, name in enumerate(("one & <only>", "set/two")):
        song = Song(name, noise(index), NO_NOTES)
        songs.append(rendered(name, noise(index, 1.9) + noise(10 + index, 1.9, 0.02)))
        measure(workdir, song, system_audio(song, songs[-1], noise(1 - index)), [Levels()], None)
        measured.append(read_measured(workdir, name, [Levels()], None))
    return songs, measured, results(songs, measured, [Levels()], ["No notes were transcribed."])
