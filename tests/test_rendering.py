"""Rendering of songs for evaluation: batches, timing, files in the workdir and the systems compared."""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pytest
from inputs import make_recording, write_dataset
from measured import NO_NOTES, WITHOUT, noise, rendered
from optional import needs_synth

from spectrodiff.audio.mel import SAMPLE_RATE, log_mel_on_host
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.soundfont import SOUNDFONT as SOUNDFONT_FILE
from spectrodiff.errors import InputError
from spectrodiff.evaluation.rendering import (
    NOISE,
    SOUNDFONT,
    SYSTEMS,
    WRONG,
    RenderedSong,
    Run,
    SongMetadata,
    is_rendered,
    render,
    song_seed,
    system_audio,
)
from spectrodiff.evaluation.songs import Song, Songs

OPTIONS = {"sampler": "ddpm", "steps": 2, "guidance": 2.0}  # the sampler that draws the most noise
RUN = Run("x", "0", "GriffinLim", "rendered", "train", None, OPTIONS, 0)


class MeanVocoder:
    """A fast vocoder that outputs each frame's mean for a hop, in pieces of 100 frames."""

    def __call__(self, mel):
        return np.concatenate(list(self.stream([mel])))

    def identity(self):
        return "MeanVocoder"

    def stream(self, mels):
        mel = np.concatenate(list(mels))
        for start in range(0, len(mel), 100):
            yield np.repeat(mel[start : start + 100].mean(axis=1) / 20, 320).astype(np.float32)


@pytest.fixture
def fast_synthesizer(synthesizer, monkeypatch):
    monkeypatch.setattr(synthesizer, "vocoder", MeanVocoder())
    return synthesizer


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    """Songs of two, one and three windows, whose names contain a slash."""
    pieces = [
        dataclasses.replace(make_recording(seed, seconds), name=f"set/{seed}")
        for seed, seconds in ((1, 6.0), (2, 2.0), (3, 10.0))
    ]
    data_dir = tmp_path_factory.mktemp("songs")
    write_dataset(data_dir, "toy", {"test": pieces})
    return Songs(open_dataset(data_dir, "toy")["test"])


@pytest.fixture(scope="module")
def rendered_songs(synthesizer, songs):
    vocoder, synthesizer.vocoder = synthesizer.vocoder, MeanVocoder()
    found = {song.name: song for song in render(synthesizer, songs, range(3), seed=5, batch=2, **OPTIONS)}
    synthesizer.vocoder = vocoder
    return found


def test_batched_songs_match_the_synthesizer(fast_synthesizer, songs, rendered_songs):
    assert len(rendered_songs) == 3
    for index in range(3):
        song = songs[index]
        made = rendered_songs[song.name]
        assert made.seed == song_seed(5, song.name)
        expected = np.concatenate(list(fast_synthesizer.mels(song.notes, seed=made.seed, **OPTIONS)))
        np.testing.assert_allclose(made.mel, expected, atol=2e-3)  # the range of mels is 15 nats
        np.testing.assert_allclose(made.audio, fast_synthesizer.vocoder(made.mel), atol=1e-6)
        expected = fast_synthesizer.vocoder(log_mel_on_host(song.audio))[: len(song.audio)]
        np.testing.assert_allclose(made.encoded, expected, atol=1e-6)
        assert made.seconds == len(song.audio) / SAMPLE_RATE


def test_song_seed_depends_on_seed_and_name():
    seeds = {song_seed(seed, name) for seed in range(3) for name in ("a", "b", "set/1")}
    assert len(seeds) == 9
    assert song_seed(1, "a") == song_seed(1, "a")


def test_timing_excludes_first_runs(rendered_songs):
    """The first window of each program and the first piece of each vocoded mel are not counted."""
    windows = sum(song.spectrogram[1] for song in rendered_songs.values()) / 5.12
    assert 0 < windows < 6
    for song in rendered_songs.values():
        encoded = len(song.encoded) / 320
        pieces = (max(0, len(song.mel) - 100) + max(0, np.ceil(encoded) - 100)) / 50
        assert song.vocoder[1] == pytest.approx(pieces, abs=0.02)


def test_saved_song_is_loaded_with_16_bit_audio(rendered_songs, tmp_path):
    RUN.claim(tmp_path)
    song = dataclasses.replace(rendered_songs["set/2"], audio=3 * rendered_songs["set/2"].audio)
    assert not is_rendered(tmp_path, song.name)
    song.save(tmp_path)
    assert is_rendered(tmp_path, song.name)
    assert len(list((tmp_path / "songs").iterdir())) == 2
    got = RenderedSong.load(tmp_path, song.name)
    np.testing.assert_array_equal(got.mel, song.mel)
    np.testing.assert_allclose(got.audio, song.audio / max(1, np.abs(song.audio).max()), atol=1 / 65534 + 1e-6)
    np.testing.assert_allclose(got.encoded, song.encoded, atol=1 / 65534 + 1e-6)
    assert (got.spectrogram, got.vocoder, got.seed) == (song.spectrogram, song.vocoder, song.seed)


def test_damaged_song_file_raises_input_error(rendered_songs, tmp_path):
    RUN.claim(tmp_path)
    rendered_songs["set/2"].save(tmp_path)
    path = tmp_path / "songs" / "set%2F2.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"set%2F2\.npz"):
        RenderedSong.load(tmp_path, "set/2")
    assert SongMetadata.load(tmp_path, "set/2").seconds == rendered_songs["set/2"].seconds
    (tmp_path / "songs" / "set%2F2.json").write_text('{"name": "set/2"}')
    with pytest.raises(InputError, match=r"set%2F2\.json .*version"):
        SongMetadata.load(tmp_path, "set/2")


def test_songs_with_unusual_names_are_saved(rendered_songs, tmp_path):
    RUN.claim(tmp_path)
    names = ["\u00e9" * 100, "\u00e9" * 100 + "b", "x" * 250, "a/" * 120, ".", "\U0001d11e" * 60]
    for seed, name in enumerate(names):
        dataclasses.replace(rendered_songs["set/2"], name=name, seed=seed).save(tmp_path)
    assert [SongMetadata.load(tmp_path, name).seed for name in names] == list(range(len(names)))
    assert all(is_rendered(tmp_path, name) for name in names)


def test_workdir_of_another_run_raises_input_error(tmp_path):
    RUN.claim(tmp_path / "run")
    RUN.claim(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["sampling"] == OPTIONS
    with pytest.raises(InputError, match=r"run .*steps 2.* 4"):
        dataclasses.replace(RUN, sampling=OPTIONS | {"steps": 4}).claim(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f" {tmp_path}/file: "):
        RUN.claim(tmp_path / "file")


def test_remote_workdir_raises_input_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^gs://bucket/run "):
        RUN.claim(pathlib.Path("gs://bucket/run"))
    assert os.listdir() == []


def test_read_only_workdir_raises_input_error(tmp_path, monkeypatch):
    RUN.claim(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(InputError, match=rf" {tmp_path}/songs$"):
        RUN.claim(tmp_path)


def test_batch_shape_stays_the_same_to_the_end(fast_synthesizer, songs, monkeypatch):
    """The batch is filled up when fewer songs than rows are left."""
    shapes, sample = [], fast_synthesizer.mel_sampler.sample_windows

    def counted(tokens, *rest, **options):
        shapes.append(tokens.shape)
        return sample(tokens, *rest, **options)

    monkeypatch.setattr(fast_synthesizer.mel_sampler, "sample_windows", counted)
    list(render(fast_synthesizer, songs, range(3), seed=5, batch=2, **OPTIONS))
    assert set(shapes) == {(2, 512)}
    assert len(shapes) == 3  # three windows in one row, two and one in the other


def test_system_audio_has_equal_length_and_level():
    true = np.float32(0.3) * noise(0)
    audio = system_audio(Song("a", true, NO_NOTES), rendered("a", noise(1, 1.5)), noise(2, 1.0))
    assert {name: len(sound) for name, sound in audio.items()} == {
        **dict.fromkeys(WITHOUT, 24000),
        WRONG: 16000,
    }
    assert audio[NOISE].std() == pytest.approx(true.std(), rel=0.02)
    assert WRONG not in system_audio(Song("a", true, NO_NOTES), rendered("a", true), None)


@needs_synth
def test_soundfont_system_matches_the_level_of_the_true_audio():
    tones = make_recording(1, 2.0)
    song = Song("a", tones.audio, tones.notes)
    audio = system_audio(song, rendered("a", tones.audio), None, SOUNDFONT_FILE)
    assert list(audio) == [name for name in SYSTEMS if name != WRONG]
    played = audio[SOUNDFONT]
    assert len(played) == len(tones.audio)
    assert played.std() == pytest.approx(tones.audio.std(), rel=0.02)
    silent = system_audio(Song("a", tones.audio, NO_NOTES), rendered("a", tones.audio), None, SOUNDFONT_FILE)
    assert not silent[SOUNDFONT].any()
