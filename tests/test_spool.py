import numpy as np
import pytest
import soundfile

from spectrodiff.audio import spool as module
from spectrodiff.audio.files import FORMATS
from spectrodiff.audio.spool import AudioSpool
from spectrodiff.errors import InputError

AUDIO = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)


def spool_of(audio, pieces=3):
    spool = AudioSpool()
    for piece in np.array_split(audio, pieces):
        spool.write(piece)
    return spool


def test_what_was_written_comes_back_in_blocks(monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    with spool_of(AUDIO) as spool:
        blocks = list(spool.blocks())
        assert max(map(len, blocks)) == 1000
        np.testing.assert_array_equal(np.concatenate(blocks), AUDIO)
        assert (spool.samples, spool.peak) == (len(AUDIO), np.abs(AUDIO).max())


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format(tmp_path, suffix):
    with spool_of(AUDIO) as spool:
        spool.save(tmp_path / f"a{suffix}")
    audio, rate = soundfile.read(tmp_path / f"a{suffix}")
    assert rate == 16000
    assert len(audio) == len(AUDIO)
    if suffix != ".ogg":
        np.testing.assert_allclose(audio, AUDIO, atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "peak", "expected"), [(1, None, 0.5), (4, None, 1.0), (4, 0.9, 0.9), (0.01, 0.9, 0.9)]
)
def test_levels(tmp_path, scale, peak, expected):
    with spool_of(scale * AUDIO) as spool:
        spool.save(tmp_path / "a.wav", peak)
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() == pytest.approx(expected, abs=1e-3)


def test_samples_that_are_no_numbers():
    with AudioSpool() as spool, pytest.raises(InputError):
        spool.write(np.array([0.0, np.nan], np.float32))
