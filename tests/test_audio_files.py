import numpy as np
import pytest
import soundfile

from spectrodiff.audio.files import read_audio, write_audio
from spectrodiff.errors import InputError


def tone(rate, seconds=1.0, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_any_rate_becomes_sixteen_kilohertz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32
    assert len(audio) == 16000
    np.testing.assert_allclose(audio[1000:-1000], tone(16000)[1000:-1000], atol=5e-3)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000), 0 * tone(16000)], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), tone(16000) / 2, atol=1e-6)


def test_mp3_is_read(tmp_path):
    soundfile.write(tmp_path / "a.mp3", tone(44100, 2.0), 44100, format="MP3")
    audio = read_audio(tmp_path / "a.mp3")
    spectrum = np.abs(np.fft.rfft(audio[8000:24000]))
    assert np.argmax(spectrum) == 440


@pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 4e-5), (".flac", 4e-5), (".ogg", 0.05), (".WAV", 4e-5)])
def test_written_audio_reads_back(tmp_path, suffix, tolerance):
    write_audio(tmp_path / f"a{suffix}", tone(16000).astype(np.float32))
    np.testing.assert_allclose(read_audio(tmp_path / f"a{suffix}"), tone(16000), atol=tolerance)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_wav_is_sixteen_bit(tmp_path):
    write_audio(tmp_path / "a.wav", tone(16000).astype(np.float32))
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_what_is_too_loud_is_turned_down_not_clipped(tmp_path):
    write_audio(tmp_path / "a.wav", (4 * tone(16000)).astype(np.float32))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), 2 * tone(16000), atol=1e-4)


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a wave file")
    (tmp_path / "a.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), 16000, subtype="FLOAT")
    for name in ["missing.wav", "", "empty.wav", "text.wav", "a.raw", "none.wav", "nan.wav"]:
        with pytest.raises(InputError) as caught:
            read_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a", "missing/a.wav"])
def test_what_cannot_be_written_leaves_nothing(tmp_path, name):
    with pytest.raises(InputError, match="cannot write"):
        write_audio(tmp_path / name, tone(16000).astype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_audio_that_is_not_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match="not numbers"):
        write_audio(tmp_path / "a.wav", np.array([0.0, np.nan], np.float32))
    assert list(tmp_path.iterdir()) == []
