import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectrodiff.data.mixture import Mixture
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import REFINER
from spectrodiff.pretrained.native import load
from spectrodiff.pretrained.vocoders import find_vocoder
from spectrodiff.training import state as states
from spectrodiff.training.evaluators import CropBaseline, CropError, CropGallery
from spectrodiff.training.refiner import RefinerTask
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.losses import magnitude_losses
from spectrodiff.vocoder.refiner import RefinerConfig
from spectrodiff.vocoder.stft import FINE, stft

TINY = RefinerConfig(width=32, layers=1, kernel=3)


@pytest.fixture(scope="module")
def task(corpus):
    return RefinerTask(Mixture(str(corpus)), config=TINY, batch_size=2, crop_frames=14, heldout_crops=2)


@pytest.fixture(scope="module")
def refiner(task):
    return task.build(nnx.Rngs(0))


def test_magnitude_losses_of_exact_and_doubled_magnitudes():
    true = jnp.exp(jax.random.normal(jax.random.key(0), (2, 20, 513)))
    exact = magnitude_losses(jnp.log(true), true)
    assert float(exact["log_magnitude"]) == pytest.approx(0.0, abs=1e-5)
    assert float(exact["convergence"]) == pytest.approx(0.0, abs=1e-5)
    doubled = magnitude_losses(jnp.log(2 * true), true)
    assert float(doubled["log_magnitude"]) == pytest.approx(np.log(2), rel=0.01)
    assert float(doubled["convergence"]) == pytest.approx(1.0, rel=0.01)


def test_log_magnitude_loss_ignores_bins_80_db_below_the_peak():
    true = jnp.full((1, 20, 513), 1e-2).at[:, :, 0].set(1e4)
    off = magnitude_losses(jnp.log(true).at[:, :, 1:].add(-3.0), true)
    assert float(off["log_magnitude"]) < 0.02


@pytest.mark.parametrize("kernel", [1, 3])
def test_loss_compares_magnitudes_of_the_mels_frames(task, kernel):
    """True magnitudes of the mel's frames have no loss; those one frame later do."""
    task = dataclasses.replace(task, config=dataclasses.replace(TINY, kernel=kernel))
    audio = 0.1 * jax.random.normal(jax.random.key(0), (2, (16 + 16) * 320))
    true = jnp.log(jnp.abs(jax.vmap(stft)(audio)))
    for late, (least, most) in {0: (0.0, 1e-4), FINE: (0.1, np.inf)}.items():
        terms = task._terms(lambda mel, late=late: true[:, late:][:, : FINE * mel.shape[1]], {"audio": audio})
        assert all(least <= float(term) <= most for term in terms.values())


def test_loss_decreases_in_training(task, refiner):
    graph, params, buffers = states.split(refiner)
    adam, batches = optax.adam(3e-3), task.batches(0)
    batch = next(batches)
    batches.close()

    @jax.jit
    def step(params, moments):
        def loss(params):
            return task.loss(nnx.merge(graph, params, buffers), batch, jax.random.key(0), Others(lambda: refiner, {}))

        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = adam.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value

    moments, values = adam.init(params), []
    for _ in range(20):
        params, moments, value = step(params, moments)
        values.append(float(value))
    assert values[-1] < 0.9 * values[0]


def test_evaluators_report_metrics_and_examples(task, refiner):
    weights = states.split(refiner)
    figures, baseline = (evaluator(task, weights).figures for evaluator in (CropError(), CropBaseline()))
    assert figures.keys() == {"heldout_log_magnitude", "heldout_convergence"}
    assert baseline.keys() == {"spread_log_magnitude", "spread_convergence"}
    assert all(np.isfinite(value) and value > 0 for value in [*figures.values(), *baseline.values()])
    _, pictures, sounds = CropGallery()(task, weights)
    assert {picture.shape for picture in pictures.values()} == {(128, 100 + 4 + 100, 3)}
    np.testing.assert_array_equal(sounds["heldout_audio/0_true"], task.heldout[0])


def test_saved_refiner_is_loaded_as_vocoder(task, refiner, tmp_path):
    task.save(tmp_path, refiner, {"steps": 3})
    loaded, config = load(tmp_path, REFINER)
    assert config == TINY
    mel = np.full((4, 128), -3.0, np.float32)
    np.testing.assert_array_equal(jax.jit(loaded)(mel[None]), jax.jit(refiner)(mel[None]))
    assert find_vocoder(tmp_path)(mel).shape == (4 * 320,)
    with pytest.raises(InputError, match=r"RefinerConfig\(width=32,.*RefinerConfig\(width=384,"):
        RefinerTask(config=RefinerConfig()).load(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heldout_crops": 0}, r"^heldout_crops is 0\b"),
        ({"config": RefinerConfig(layers=14, kernel=7)}, r"\b42 frames on either side\b"),
    ],
)
def test_unusable_heldout_crops_raise_input_error(values, message):
    with pytest.raises(InputError, match=message):
        RefinerTask(**values)


def test_agreement_with_predicted_mels_raises_input_error():
    with pytest.raises(InputError, match=r"RefinerTask\.predicted_by.*RefinerConfig\.agreement"):
        RefinerTask(config=RefinerConfig(), predicted_by="demo")
