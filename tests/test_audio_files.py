import os

import numpy as np
import pytest
import soundfile

from spectrodiff.audio.files import READABLE, UNREADABLE, check_audio_path, read_audio, write_audio
from spectrodiff.audio.loudness import LOUDNESS, SAMPLE_PEAK, integrated_loudness
from spectrodiff.errors import InputError


def tone(rate, seconds=1.0, hz=440.0):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_read_audio_resamples_to_16_khz(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    audio = read_audio(tmp_path / "a.wav")
    assert audio.dtype == np.float32
    assert len(audio) == 16000
    np.testing.assert_allclose(audio[1000:-1000], tone(16000)[1000:-1000], atol=5e-3)


def test_channels_are_averaged(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000), 0 * tone(16000)], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), tone(16000) / 2, atol=1e-6)


def stack_channels(*signals):
    return np.stack(signals, axis=1)


def test_channels_that_cancel_are_replaced_by_the_loudest(tmp_path):
    left, noise = tone(16000), 0.01 * np.random.default_rng(0).standard_normal(16000)
    cases = {
        "mirrored": stack_channels(left, -left),
        "nearly": stack_channels(left, noise - 0.9 * left),
        "of four": stack_channels(left / 2, -left, left, -left / 2 + noise),
    }
    for name, channels in cases.items():
        soundfile.write(tmp_path / f"{name}.wav", channels, 16000, subtype="FLOAT")
        loudest = channels[:, 2 if name == "of four" else 0]
        np.testing.assert_allclose(np.abs(read_audio(tmp_path / f"{name}.wav")), np.abs(loudest), atol=1e-6)


@pytest.mark.parametrize("others", [1, 7, 15])
def test_wide_stereo_and_single_channels_are_averaged(tmp_path, others):
    rng = np.random.default_rng(1)
    wide = 0.2 * rng.standard_normal((16000, 1 + others))
    for name, channels in {
        "wide": wide,
        "lone": wide * (np.arange(1 + others) == 0),
        "against": stack_channels(wide[:, 0], 0.8 * wide[:, 1] - 0.6 * wide[:, 0]),  # correlation -0.6
        "silent": 0 * wide,
    }.items():
        soundfile.write(tmp_path / f"{name}.wav", channels, 16000, subtype="FLOAT")
        np.testing.assert_allclose(read_audio(tmp_path / f"{name}.wav"), channels.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".aif", {"format": "AIFF"}),
        (".aiff", {"format": "AIFF", "subtype": "PCM_24"}),
        (".aifc", {"format": "AIFF", "subtype": "FLOAT"}),
        (".wave", {"format": "WAV"}),
        (".w64", {"format": "W64"}),
        (".rf64", {"format": "RF64"}),
        (".au", {"format": "AU"}),
        (".snd", {"format": "AU"}),
        (".caf", {"format": "CAF"}),
        (".oga", {"format": "OGG", "subtype": "VORBIS"}),
        (".opus", {"format": "OGG", "subtype": "OPUS"}),
        (".wav", {"format": "FLAC"}),  # the content decides, not the suffix
    ],
)
def test_read_audio_reads_every_libsndfile_format(tmp_path, suffix, options):
    assert suffix in READABLE
    path = tmp_path / f"a{suffix}"
    with path.open("wb") as file:
        soundfile.write(file, tone(16000), 16000, **options)
    np.testing.assert_allclose(read_audio(path)[1000:15000], tone(16000)[1000:15000], atol=0.05)


def test_file_names_of_any_encoding_round_trip(tmp_path):
    for name in (os.fsdecode(b"caf\xe9.wav"), "cafe\u0301.wav", "x" * 251 + ".wav"):
        write_audio(tmp_path / name, tone(16000).astype(np.float32))
        np.testing.assert_allclose(read_audio(tmp_path / name), tone(16000), atol=4e-5)


def test_read_audio_reads_mp3(tmp_path):
    soundfile.write(tmp_path / "a.mp3", tone(44100, 2.0), 44100, format="MP3")
    audio = read_audio(tmp_path / "a.mp3")
    spectrum = np.abs(np.fft.rfft(audio[8000:24000]))
    assert np.argmax(spectrum) == 440


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".wav", 4e-5), (".flac", 4e-5), (".ogg", 0.05), (".mp3", 0.2), (".WAV", 4e-5)]
)
def test_written_audio_round_trips(tmp_path, suffix, tolerance):
    write_audio(tmp_path / f"a{suffix}", tone(16000).astype(np.float32))
    np.testing.assert_allclose(read_audio(tmp_path / f"a{suffix}"), tone(16000), atol=tolerance)
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_wav_is_written_as_16_bit_pcm(tmp_path):
    write_audio(tmp_path / "a.wav", tone(16000).astype(np.float32))
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"


def test_write_audio_scales_down_instead_of_clipping(tmp_path):
    write_audio(tmp_path / "a.wav", (4 * tone(16000)).astype(np.float32))
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav"), 2 * tone(16000), atol=1e-4)


def test_unreadable_audio_is_a_one_line_error(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("not a wave file")
    (tmp_path / "a.raw").write_bytes(bytes(100))
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), 16000, subtype="FLOAT")
    for name in ["missing.wav", "", "empty.wav", "text.wav", "a.raw", "none.wav", "nan.wav", "x" * 300 + ".wav"]:
        with pytest.raises(InputError) as caught:
            read_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.mp4", "a", "missing/a.wav"])
def test_failed_write_leaves_no_file(tmp_path, name):
    with pytest.raises(InputError, match=f"{tmp_path / name}: "):
        write_audio(tmp_path / name, tone(16000).astype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_write_audio_brings_quiet_audio_to_a_level(tmp_path):
    quiet = (0.01 * tone(32000)).astype(np.float32)
    write_audio(tmp_path / "peak.wav", quiet, level="peak")
    write_audio(tmp_path / "loudness.wav", quiet, level="loudness")
    assert np.abs(read_audio(tmp_path / "peak.wav")).max() == pytest.approx(SAMPLE_PEAK, abs=1e-3)
    assert integrated_loudness([read_audio(tmp_path / "loudness.wav")]) == pytest.approx(LOUDNESS, abs=0.05)
    with pytest.raises(InputError, match="loud"):
        write_audio(tmp_path / "other.wav", quiet, level="loud")
    assert not (tmp_path / "other.wav").exists()


def test_write_audio_refuses_nan(tmp_path):
    with pytest.raises(InputError, match=r"a\.wav: .*\bsample 1\b"):
        write_audio(tmp_path / "a.wav", np.array([0.0, np.nan], np.float32))
    assert list(tmp_path.iterdir()) == []


def test_check_audio_path_needs_enough_disk_space(tmp_path):
    check_audio_path(tmp_path / "a.wav", 60.0)
    with pytest.raises(InputError, match=r"a\.wav: .* MB\b.* MB\b"):
        check_audio_path(tmp_path / "a.wav", 1e12)


def test_readable_and_unreadable_suffixes_are_disjoint():
    assert not set(READABLE) & set(UNREADABLE)


def test_urls_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (read_audio, check_audio_path):
        with pytest.raises(InputError, match=r"^gs://bucket/a\.wav "):
            use("gs://bucket/a.wav")
    assert os.listdir() == []
