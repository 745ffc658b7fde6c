"""What is measured of a song, for songs of any length."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import make_recording

from spectrodiff.audio.mel import log_mel, log_mel_on_host
from spectrodiff.evaluation.musicnn import Musicnn
from spectrodiff.evaluation.reconstruction import mel_distance
from spectrodiff.evaluation.songs import Song
from spectrodiff.evaluation.systems import SYNTHESISED, TRUE, measure, read_measured
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN

SECONDS = (1.3, 2.9, 4.0, 7.3)


@pytest.fixture
def compilations():
    """Grows by one whenever JAX compiles a program, or reads it from its cache."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def song(seconds):
    recording = make_recording(0, seconds)
    return Song(f"{seconds}", recording.audio[: int(16000 * seconds)], recording.notes)


def test_the_counter_counts(compilations):
    program = jax.jit(lambda x: x + 1)
    for length in (3, 4, 3):
        program(np.ones(length, np.float32))
    assert len(compilations) == 2


def test_songs_of_all_lengths_are_measured_by_the_same_programs(compilations, tmp_path):
    counts = []
    for seconds in SECONDS:
        true = song(seconds)
        measure(tmp_path, true, {SYNTHESISED: 0.5 * true.audio, TRUE: true.audio}, [Musicnn()], None)
        counts.append(len(compilations))
    assert counts[0] == counts[-1], counts
    measured = [read_measured(tmp_path, f"{seconds}", [Musicnn()], None) for seconds in SECONDS]
    assert all(0 < found.scores[SYNTHESISED]["mel"] <= np.log(2) for found in measured)


@pytest.mark.parametrize(
    "vocoder",
    [
        GriffinLim(iterations=3, solver_iterations=3),
        GriffinLim(Refiner(RefinerConfig(width=8, layers=1), rngs=nnx.Rngs(0)), iterations=3),
        MelGAN(Generator(GeneratorConfig(channels=16, dilations=(1,)), rngs=nnx.Rngs(0))),
    ],
    ids=["griffin_lim", "refiner", "melgan"],
)
def test_songs_of_all_lengths_are_vocoded_by_the_same_programs(vocoder, compilations):
    for seconds in SECONDS[::-1]:
        vocoder(log_mel_on_host(song(seconds).audio))
        if seconds == SECONDS[-1]:
            compiled = len(compilations)
    assert compiled > 0
    assert len(compilations) == compiled


def test_the_distance_of_mels_is_that_of_the_models_features():
    """`log_mel` computes in float32, so they agree to 1e-4 nats."""
    true = song(SECONDS[1]).audio
    ours = 0.5 * true + 1e-3 * np.random.default_rng(0).normal(size=len(true)).astype(np.float32)
    expected = float(jnp.abs(log_mel(ours) - log_mel(true)).mean())
    assert mel_distance(ours, true) == pytest.approx(expected, abs=1e-4)
