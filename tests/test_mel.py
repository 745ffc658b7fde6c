import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from spectrodiff.audio.mel import (
    EXTRA_FRAMES,
    LOG_CEILING,
    LOG_FLOOR,
    log_mel,
    log_mel_on_host,
    log_mels,
    mel_frequencies,
    mel_matrix,
    scale_mel,
    unscale_mel,
)

FLOAT32_ERROR = 2e-6  # of mel magnitudes, relative to the largest one of their frame, as `log_mels` documents


def tensorflow_mel_matrix():
    """The mel matrix as TensorFlow documents it: slopes between band edges in mel, with a row of zeros for DC."""

    def to_mel(hz):
        return 1127.0 * np.log(1.0 + hz / 700.0)

    spectrogram_mel = [to_mel(8000.0 * k / 512) for k in range(1, 513)]
    edges = [to_mel(8000.0) * k / 129 for k in range(130)]
    rows = [[0.0] * 128]
    for x in spectrogram_mel:
        up = [(x - edges[b]) / (edges[b + 1] - edges[b]) for b in range(128)]
        down = [(edges[b + 2] - x) / (edges[b + 2] - edges[b + 1]) for b in range(128)]
        rows.append([max(0.0, min(u, d)) for u, d in zip(up, down, strict=True)])
    return np.array(rows)


def reference_log_mel(audio):
    """The log mel computed from its definition, frame by frame in float64."""
    frames = -(-len(audio) // 320)
    padded = np.concatenate([audio.astype(np.float64), np.zeros(640)])
    window = scipy.signal.get_window("hann", 640, fftbins=True)
    magnitudes = [abs(np.fft.rfft(padded[320 * i : 320 * i + 640] * window, 1024)) for i in range(frames)]
    return np.log(np.clip(np.array(magnitudes) @ tensorflow_mel_matrix(), 1e-5, 1e8))


def signals():
    time = np.arange(16000 * 2 + 77) / 16000
    rng = np.random.default_rng(0)
    return {
        "noise": 0.1 * rng.normal(size=time.size),
        "loud sine": 0.9 * np.sin(2 * np.pi * 220 * time),
        "decaying notes": sum(0.2 / k * np.sin(2 * np.pi * 220 * k * time) * np.exp(-9 * time) for k in range(1, 20)),
        "loud sine and a quiet one": 0.9 * np.sin(2 * np.pi * 440 * time) + 1e-4 * np.sin(2 * np.pi * 5000 * time),
        "constant": np.ones(time.size),
        "click": np.eye(1, time.size, 5000)[0],
    }


def assert_within_float32_error(found, exact):
    """Magnitudes agree to `FLOAT32_ERROR` of each frame's loudest bin, and logs within 80 dB of it to 2e-4 nats."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    loudest = exact.max(axis=-1, keepdims=True)
    allowed = FLOAT32_ERROR * np.exp(loudest) + 1e-6 * np.exp(exact)  # the second term is rounding of the logarithm
    assert (np.abs(np.exp(found) - np.exp(exact)) <= allowed).all()
    audible = exact > loudest - np.log(1e4)
    np.testing.assert_allclose(found[audible], exact[audible], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", signals())
def test_log_mel_matches_its_definition(name):
    audio = signals()[name].astype(np.float32)
    np.testing.assert_allclose(log_mel_on_host(audio), reference_log_mel(audio), atol=1e-6, rtol=1e-6)
    assert_within_float32_error(log_mel(audio), reference_log_mel(audio))


def test_log_mels_uses_no_64_bit_types():
    """TPUs do not support complex128."""
    program = jax.make_jaxpr(log_mels)(np.zeros(3200, np.float32)).jaxpr
    types = {variable.aval.dtype.name for variable in variables(program) if hasattr(variable.aval, "dtype")}
    assert "complex64" in types
    assert types <= {"float32", "complex64", "bool", "int32"}


def variables(program):
    for equation in program.eqns:
        yield from (*equation.invars, *equation.outvars)
        for value in jax.tree.leaves(equation.params):
            inner = getattr(value, "jaxpr", value)  # a closed jaxpr
            if hasattr(inner, "eqns"):
                yield from variables(inner)


@pytest.mark.parametrize("samples", [1, 319, 320, 321, 5000, 528 * 320])
@pytest.mark.parametrize("name", signals())
def test_log_mel_on_host_matches_log_mel(name, samples):
    audio = np.resize(signals()[name], samples).astype(np.float32)
    mel = log_mel_on_host(audio)
    assert isinstance(mel, np.ndarray)
    assert mel.dtype == np.float32
    assert_within_float32_error(log_mel(audio), mel)


def test_empty_audio_gives_zero_frames():
    for mel in (log_mel_on_host(np.zeros(0, np.float32)), log_mel(np.zeros(0, np.float32))):
        assert mel.shape == (0, 128)
        assert mel.dtype == np.float32


def test_mel_matrix_matches_tensorflow_and_librosa():
    np.testing.assert_allclose(mel_matrix(), tensorflow_mel_matrix(), atol=1e-9)
    centres = librosa.mel_frequencies(130, fmin=0.0, fmax=8000.0, htk=True)[1:-1]
    np.testing.assert_allclose(mel_frequencies(), centres, rtol=1e-9)
    np.testing.assert_allclose(np.argmax(mel_matrix(), axis=0) * 15.625, centres, atol=8.0)  # half an FFT bin
    inner = (np.arange(513) * 15.625 >= centres[0]) & (np.arange(513) * 15.625 <= centres[-1])
    np.testing.assert_allclose(mel_matrix()[inner].sum(axis=1), 1.0, atol=1e-12)


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (319, 1), (320, 1), (321, 2), (16000, 50), (16001, 51)])
def test_frame_count_is_samples_over_hop_rounded_up(samples, frames):
    assert log_mel(np.ones(samples, np.float32)).shape == (frames, 128)


def test_frame_window_starts_at_its_hop():
    audio = np.zeros(3200, np.float32)
    audio[320 * 5 + 100] = 1.0
    audible = np.asarray(log_mel(audio)).max(axis=1) > LOG_FLOOR + 1e-3
    assert list(np.flatnonzero(audible)) == [4, 5]


def test_silence_gives_the_log_floor():
    np.testing.assert_allclose(log_mel(np.zeros(3200, np.float32)), LOG_FLOOR, atol=1e-6)


def test_log_mel_of_a_crop_equals_the_slice_of_the_whole():
    audio = signals()["noise"].astype(np.float32)
    whole, start, length = log_mel(audio), 20, 40
    window = log_mel(audio[320 * start : 320 * (start + length + EXTRA_FRAMES)])[:length]
    np.testing.assert_allclose(window, whole[start : start + length], atol=1e-6)


def test_log_mels_works_on_batches_under_jit():
    audio = jnp.stack([jnp.ones(3200), jnp.linspace(-1, 1, 3200)])
    batched = jax.jit(lambda x: log_mels(x) * 2)(audio[None])
    assert batched.shape == (1, 2, 10, 128)
    assert batched.dtype == jnp.float32
    np.testing.assert_allclose(batched[0, 1] / 2, log_mel(audio[1]), atol=1e-6)


def test_scale_mel_round_trips_and_clips():
    mel = jnp.linspace(LOG_FLOOR, LOG_CEILING, 256).reshape(2, 128)
    scaled = scale_mel(mel)
    assert (float(scaled[0, 0]), float(scaled[-1, -1])) == (-1.0, 1.0)
    np.testing.assert_allclose(unscale_mel(scaled), mel, atol=1e-5)
    assert float(scale_mel(jnp.full((1, 128), 9.0)).max()) == 1.0
    assert float(scale_mel(jnp.full((1, 128), -99.0)).min()) == -1.0
    on_host = scale_mel(np.asarray(mel))
    assert isinstance(on_host, np.ndarray)
    np.testing.assert_allclose(on_host, scaled, atol=1e-6)
