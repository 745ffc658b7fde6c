"""Per-song measurements, for songs of any length, and the evaluation results computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import make_recording
from measured import NO_NOTES, WITHOUT, Fixed, Levels, noise, rendered, two_songs

from spectrodiff.audio.mel import log_mel, log_mel_on_host
from spectrodiff.errors import InputError
from spectrodiff.evaluation.evaluate import claim_embeddings
from spectrodiff.evaluation.frechet import Gaussian, frechet_distance
from spectrodiff.evaluation.measurements import (
    Measurements,
    is_measured,
    measure,
    read_measured,
    results,
)
from spectrodiff.evaluation.musicnn import Musicnn
from spectrodiff.evaluation.reconstruction import mel_distance
from spectrodiff.evaluation.rendering import ENCODED, SYNTHESISED, TRUE, system_audio
from spectrodiff.evaluation.songs import Song
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN

SECONDS = (1.3, 2.9, 4.0, 7.3)


@pytest.fixture
def compilations():
    """A list that grows by one whenever JAX compiles a program or reads one from its cache."""
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


def test_compilations_fixture_counts_one_per_shape(compilations):
    program = jax.jit(lambda x: x + 1)
    for length in (3, 4, 3):
        program(np.ones(length, np.float32))
    assert len(compilations) == 2


def test_song_length_does_not_recompile_measurements(compilations, tmp_path):
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
def test_song_length_does_not_recompile_vocoders(vocoder, compilations):
    for seconds in SECONDS[::-1]:
        vocoder(log_mel_on_host(song(seconds).audio))
        if seconds == SECONDS[-1]:
            compiled = len(compilations)
    assert compiled > 0
    assert len(compilations) == compiled


def test_mel_distance_matches_log_mel_features():
    """The model's `log_mel` computes in float32, so the two agree to 1e-4 nats."""
    true = song(SECONDS[1]).audio
    ours = 0.5 * true + 1e-3 * np.random.default_rng(0).normal(size=len(true)).astype(np.float32)
    expected = float(jnp.abs(log_mel(ours) - log_mel(true)).mean())
    assert mel_distance(ours, true) == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def two_measured_songs(tmp_path_factory):
    return two_songs(tmp_path_factory.mktemp("measured"))


def test_results_pool_frames_and_average_scores_over_songs(two_measured_songs):
    _, measured, found = two_measured_songs
    frames = {system: np.concatenate([song.embedded["levels"][system] for song in measured]) for system in WITHOUT}
    expected = frechet_distance(Gaussian.of(frames[TRUE]), Gaussian.of(frames[SYNTHESISED]))
    ours = found["systems"][SYNTHESISED]
    assert ours["frechet/levels"] == pytest.approx(expected)
    low, high = ours["frechet_interval/levels"]
    assert 0 <= low <= expected <= high
    gaps = np.linalg.norm(frames[TRUE] - frames[SYNTHESISED], axis=1)
    assert ours["l2/levels"] == pytest.approx(gaps.mean())
    assert ours["mel"] == pytest.approx(np.mean([song.scores[SYNTHESISED]["mel"] for song in measured]))
    assert ours["spectrogram_speed"] == ours["vocoder_speed"] == 0.25
    assert found["systems"][TRUE]["frechet/levels"] == pytest.approx(0, abs=1e-9)
    assert found["systems"][TRUE]["mel"] == 0
    assert found["systems"][ENCODED]["mel"] > ours["mel"] > 0
    assert found["dropped_notes"] == 4


def test_existing_measurements_are_not_recomputed(two_measured_songs, tmp_path):
    song, audio = Song("a", noise(0), NO_NOTES), noise(1)
    systems = system_audio(song, rendered("a", audio), None)
    assert not is_measured(tmp_path, "a", [Levels()], None)
    measure(tmp_path, song, systems, [Levels()], None)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert is_measured(tmp_path, "a", [Levels()], None)
    assert not is_measured(tmp_path, "a", [Levels()], Fixed())
    measure(tmp_path, song, systems, [Levels()], Fixed())
    assert is_measured(tmp_path, "a", [Levels()], Fixed())
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())


def test_each_embedding_gets_audio_at_its_own_sample_rate(tmp_path):
    class Long(Levels):
        name, rate = "long", 48000

    song = Song("a", noise(0), NO_NOTES)
    measure(tmp_path, song, system_audio(song, rendered("a", noise(1))), [Levels(), Long()], None)
    found = read_measured(tmp_path, "a", [Levels(), Long()], None).embedded
    assert [len(found[name][TRUE]) for name in ("levels", "long")] == [20, 60]


def test_results_warn_about_too_few_frames(two_measured_songs, monkeypatch):
    monkeypatch.setattr("spectrodiff.evaluation.measurements._RESAMPLES", 2)

    class Wide(Levels):
        dims = 60

    songs, measured, _ = two_measured_songs
    frames = {system: np.random.default_rng(0).normal(size=(20, 60)) for system in WITHOUT}
    wide = [Measurements(song.name, song.scores, {}, {"levels": frames}) for song in measured]
    found = results(songs, wide, [Wide()], [])
    assert [line for line in found["remarks"] if "60 dimensions from 40 frames" in line]
    assert len(found["remarks"]) == 1  # once in total, not once per system


def test_embeddings_by_another_model_of_the_same_name_are_refused(tmp_path):
    model, other = Levels(), Levels()
    other.identity = "other weights"
    claim_embeddings(tmp_path, [model])
    claim_embeddings(tmp_path, [model])
    with pytest.raises(InputError, match="levels"):
        claim_embeddings(tmp_path, [other])
    with pytest.raises(InputError, match=r"\bname\b"):
        claim_embeddings(tmp_path / "new", [model, other])
    assert not (tmp_path / "new").exists()
