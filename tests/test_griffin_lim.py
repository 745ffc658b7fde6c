import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from spectrodiff.audio.mel import LOG_FLOOR, log_mel, mel_matrix
from spectrodiff.errors import InputError
from spectrodiff.evaluation.reconstruction import mel_distance, tone_similarity
from spectrodiff.vocoder.griffin_lim import AFTER, GriffinLim
from spectrodiff.vocoder.magnitudes import interpolate, solve_magnitude
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.stft import FINE, istft, stft

SEAM = GriffinLim().chunk * 320


def beating_notes(seconds=6.0):
    """Decaying harmonic tones with a noise burst on every beat, and faint hiss as in recordings."""
    rng = np.random.default_rng(0)
    time = np.arange(int(seconds * 16000)) / 16000
    audio = 3e-4 * rng.normal(size=time.size)
    for beat in np.arange(0, seconds, 0.5):
        since = np.maximum(time - beat, 0.0)
        sounding = time >= beat
        hz = 110 * 2 ** (rng.integers(0, 25) / 12)
        audio += sum(0.1 / k * np.sin(2 * np.pi * k * hz * since) * np.exp(-4 * since) for k in range(1, 9)) * sounding
        audio += 0.05 * rng.normal(size=time.size) * np.exp(-80 * since) * sounding
    return audio.astype(np.float32)


@pytest.fixture(scope="module")
def reconstruction():
    audio = beating_notes()
    return audio, GriffinLim()(log_mel(audio))


def test_mel_of_the_audio_is_close_to_the_input(reconstruction):
    audio, again = reconstruction
    assert again.shape == audio.shape
    assert again.dtype == np.float32
    assert mel_distance(again, audio) < 0.2
    shifted = np.roll(again, 320)
    assert mel_distance(again, audio) < 0.7 * mel_distance(shifted, audio)  # closer than if it were a frame late


def test_free_magnitudes_bring_the_mel_closer(reconstruction):
    audio, again = reconstruction
    fixed = GriffinLim(freedom=0.0)(log_mel(audio))
    assert mel_distance(again, audio) < 0.8 * mel_distance(fixed, audio)


def test_magnitudes_that_need_not_agree_with_the_mel_are_kept(reconstruction):
    mel = np.asarray(log_mel(reconstruction[0]))
    refiner = Refiner(RefinerConfig(8, 1, 3, agreement=0), rngs=nnx.Rngs(0))
    free, fixed = (GriffinLim(refiner, iterations=2, freedom=freedom)(mel) for freedom in (0.7, 0.0))
    assert np.array_equal(free, fixed)


def test_tones_are_similar_to_the_original(reconstruction):
    audio, again = reconstruction
    assert tone_similarity(again, audio) > 0.85


@pytest.mark.parametrize("hz", [110, 440, 1000])
def test_steady_tone_has_no_clicks_at_chunk_boundaries(hz):
    tone = (0.3 * np.sin(2 * np.pi * hz * np.arange(3 * SEAM) / 16000)).astype(np.float32)
    again = GriffinLim()(log_mel(tone))
    inside = slice(3200, len(tone) - 3200)
    level = 10 * np.log10(2 * scipy.ndimage.uniform_filter1d(again**2, 640)[inside] / 0.3**2)
    assert np.abs(level).max() < 1.6  # dB; free magnitudes let it wander by about 1
    treble = scipy.signal.sosfilt(scipy.signal.butter(6, 4000, "high", fs=16000, output="sos"), again)
    clicks = scipy.ndimage.maximum_filter1d(np.abs(treble), 320)
    rounding = 1e-5  # 90 dB below the tone
    assert clicks[SEAM - 320 : SEAM + 960].max() < max(1.5 * np.median(clicks[inside]), rounding)


@pytest.mark.parametrize("pieces", [[75, 75, 75, 75], [256, 44], [1, 299]])
def test_streaming_equals_calling(reconstruction, pieces):
    mel, again = np.asarray(log_mel(reconstruction[0])), reconstruction[1]
    assert np.array_equal(np.concatenate(list(GriffinLim().stream(np.split(mel, np.cumsum(pieces)[:-1])))), again)


def test_stream_yields_audio_after_a_chunk_and_its_lookahead():
    delayed_mels = iter(np.full((300, 1, 128), -3.0, np.float32))
    assert len(next(GriffinLim().stream(delayed_mels))) == SEAM
    assert len(list(delayed_mels)) == 300 - GriffinLim().chunk - AFTER


@pytest.mark.parametrize("refined", [False, True])
def test_stream_compiles_while_it_waits_for_the_first_mel(refined):
    refiner = Refiner(RefinerConfig(8, 1, 3), rngs=nnx.Rngs(0)) if refined else None
    compiled, awaited = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event == "/jax/core/compile/backend_compile_duration")
    )
    vocoder = GriffinLim(refiner, iterations=5, solver_iterations=5)  # no other test has compiled these

    def delayed_mels():
        give_up = time.monotonic() + 300
        while sum(compiled) < 2 and time.monotonic() < give_up:  # compilation runs in another thread
            time.sleep(0.01)
        awaited.append(sum(compiled))
        yield np.full((200, 128), -3.0, np.float32)

    list(vocoder.stream(delayed_mels()))
    assert awaited == [2]
    assert sum(compiled) == 2


@pytest.mark.parametrize("frames", [1, 3, 300])
def test_silence_stays_silent(frames):
    audio = GriffinLim()(np.full((frames, 128), LOG_FLOOR, np.float32))
    assert audio.shape == (frames * 320,)
    assert np.abs(audio).max() < 1e-3  # -60 dBFS


@pytest.mark.parametrize("mel", [np.zeros((0, 128)), np.zeros((5, 64)), np.full((5, 128), np.nan)])
def test_invalid_mels_raise_input_error(mel):
    with pytest.raises(InputError, match="mel"):
        GriffinLim()(mel)


def test_solved_magnitudes_have_the_given_mel():
    truth = 0.1 + np.abs(np.random.default_rng(0).normal(size=(20, 513)))
    mel = truth @ mel_matrix()
    solved = np.asarray(solve_magnitude(jnp.asarray(mel, jnp.float32), iterations=100))
    assert solved.min() >= 0.0
    np.testing.assert_allclose(solved @ mel_matrix(), mel, rtol=0.02)


def test_attack_in_the_first_frame_keeps_its_level():
    audio = beating_notes(1.0)
    again = GriffinLim()(log_mel(audio))
    assert 0.7 < again[:320].std() / audio[:320].std() < 1.4
    assert again[0] == 0.0  # no click


def test_stft_equals_scipy_and_istft_inverts_it():
    audio = jnp.asarray(np.random.default_rng(0).normal(size=3200), jnp.float32)
    spectrum = stft(audio)
    _, _, expected = scipy.signal.stft(
        audio, nperseg=640, noverlap=560, nfft=1024, boundary=None, padded=False, scaling="spectrum"
    )
    np.testing.assert_allclose(jnp.abs(spectrum), 320 * np.abs(expected.T), atol=1e-3)
    np.testing.assert_allclose(istft(spectrum)[560:-560], audio[560:-560], atol=1e-5)


def test_every_fourth_stft_frame_is_a_mel_frame():
    audio = jnp.asarray(beating_notes(1.0))
    fine = np.asarray(jnp.abs(stft(audio)))[::FINE]
    np.testing.assert_allclose(np.log(fine @ mel_matrix()), log_mel(audio)[: len(fine)], atol=2e-3)


def test_interpolate_is_linear_between_frames():
    fine = interpolate(jnp.asarray([[0.0], [4.0], [0.0]]), 4)[:, 0]
    np.testing.assert_allclose(fine, [0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 0, 0], atol=1e-6)
