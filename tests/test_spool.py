import numpy as np
import pyloudnorm
import pytest
import soundfile

from spectrodiff.audio import spool as module
from spectrodiff.audio.files import FORMATS, read_audio
from spectrodiff.audio.loudness import LEVELS, LOUDNESS, TRUE_PEAK
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.audio.spool import AudioSpool
from spectrodiff.errors import InputError

AUDIO = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)


def spool_of(audio, pieces=3):
    spool = AudioSpool()
    for piece in np.array_split(audio, pieces):
        spool.write(piece)
    return spool


def test_written_audio_is_read_back_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    with spool_of(AUDIO) as spool:
        blocks = list(spool.blocks())
        assert max(map(len, blocks)) == 1000
        np.testing.assert_array_equal(np.concatenate(blocks), AUDIO)
        assert (spool.samples, spool.peak) == (len(AUDIO), np.abs(AUDIO).max())


@pytest.mark.parametrize("suffix", FORMATS)
def test_audio_is_saved_in_every_format(tmp_path, suffix):
    with spool_of(AUDIO) as spool:
        spool.save(tmp_path / f"a{suffix}")
    audio, rate = soundfile.read(tmp_path / f"a{suffix}")
    assert rate == 16000
    assert len(audio) == len(AUDIO)
    if suffix in (".wav", ".flac"):
        np.testing.assert_allclose(audio, AUDIO, atol=1e-4)


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_lossy_formats_keep_the_waveform_approximately(tmp_path, suffix):
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / SAMPLE_RATE)).astype(np.float32)
    with spool_of(tone) as spool:
        spool.save(tmp_path / f"a{suffix}")
    np.testing.assert_allclose(read_audio(tmp_path / f"a{suffix}")[2000:46_000], tone[2000:46_000], atol=0.05)


@pytest.mark.parametrize(
    ("scale", "level", "expected"), [(1, "raw", 0.5), (4, "raw", 1.0), (4, "peak", 0.9), (0.01, "peak", 0.9)]
)
def test_level_raw_clips_and_level_peak_normalises(tmp_path, scale, level, expected):
    with spool_of(scale * AUDIO) as spool:
        spool.save(tmp_path / "a.wav", level)
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("scale", [0.01, 4.0])
def test_level_loudness_reaches_the_target(tmp_path, monkeypatch, scale):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    with spool_of(scale * AUDIO) as spool:
        spool.save(tmp_path / "a.wav", "loudness")
    written = soundfile.read(tmp_path / "a.wav")[0]
    assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(written) == pytest.approx(LOUDNESS, abs=0.05)


def test_true_peak_limits_the_gain_of_level_loudness(tmp_path):
    click = np.zeros(40_000, np.float32)
    click[20_000] = 1.0
    with spool_of(0.001 * AUDIO + click) as spool:
        spool.save(tmp_path / "a.wav", "loudness")
    written = soundfile.read(tmp_path / "a.wav")[0]
    assert np.abs(written).max() == pytest.approx(TRUE_PEAK, abs=0.01)
    assert pyloudnorm.Meter(SAMPLE_RATE).integrated_loudness(written) < LOUDNESS - 3


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("audio", [AUDIO[:0], AUDIO[:1], np.zeros(10, np.float32), np.zeros(40_000, np.float32)])
def test_short_and_silent_audio_is_saved_at_every_level(tmp_path, audio, level):
    with spool_of(audio) as spool:
        spool.save(tmp_path / "a.wav", level)
    written = soundfile.read(tmp_path / "a.wav")[0]
    assert len(written) == len(audio)
    assert np.abs(written).max(initial=0.0) <= 1.0


def test_unknown_level_raises_input_error(tmp_path):
    with spool_of(AUDIO) as spool, pytest.raises(InputError, match="loud"):
        spool.save(tmp_path / "a.wav", "loud")


def test_nan_samples_raise_input_error():
    with AudioSpool() as spool, pytest.raises(InputError):
        spool.write(np.array([0.0, np.nan], np.float32))
