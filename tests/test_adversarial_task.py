import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted

from spectrodiff.data.mixture import Mixture
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.pretrained.native import load
from spectrodiff.training import state as states
from spectrodiff.training.adversarial import AdversarialTask
from spectrodiff.training.audio import mel_of
from spectrodiff.training.evaluators import CropBaseline, CropError, CropGallery
from spectrodiff.training.optimizers import adversarial
from spectrodiff.training.steps import Others
from spectrodiff.training.vocoder import VocoderTask
from spectrodiff.vocoder.discriminator import DiscriminatorConfig
from spectrodiff.vocoder.generator import GeneratorConfig, receptive_frames
from spectrodiff.vocoder.losses import adversarial_losses, spectral_losses

SMALL = GeneratorConfig(channels=16, dilations=(1,), excitation="noise")
JUDGES = DiscriminatorConfig(scales=1, wave_channels=4, windows=(256,), spectrum_channels=4)
ALONE = Others(lambda: None, {})
CROP = 8  # frames
MARGIN = receptive_frames(SMALL)
INNER = slice(MARGIN * 320, (MARGIN + CROP) * 320)


@pytest.fixture(scope="module")
def task(corpus):
    return AdversarialTask(
        Mixture(str(corpus)), config=SMALL, discriminators=JUDGES, batch_size=2, crop_frames=CROP, heldout_crops=2
    )


@pytest.fixture(scope="module")
def model(task):
    return task.build(nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    return {"audio": 0.1 * jax.random.normal(jax.random.key(1), (2, (CROP + 2 * MARGIN + 16) * 320))}


@pytest.fixture(scope="module")
def gradients(task, model, batch):
    graph, params, buffers = states.split(model)

    def loss(params, batch):
        return task.loss(nnx.merge(graph, params, buffers), batch, jax.random.key(0), ALONE)

    return jax.jit(jax.grad(loss, has_aux=True))(params, batch)[0]


@jitted
def generated(generator, batch):
    """The generator's output for the crop without margins; the key draws the frame indices that seed its noise."""
    frames = CROP + 2 * MARGIN
    first = jax.random.randint(jax.random.key(0), (2,), 0, 2**30)
    return generator(mel_of(batch, frames), first)[:, INNER]


def test_discriminator_gradients_come_from_their_loss_alone(model, batch, gradients):
    def loss(params, audio, made):
        judges = nnx.merge(graph, params)
        return adversarial_losses(judges(audio), judges(made))["discriminator"]

    graph, params = nnx.split(model.discriminators)
    expected = jax.jit(jax.grad(loss))(params, batch["audio"][:, INNER], generated(model.generator, batch))
    assert_trees_close(gradients["discriminators"], expected)


def test_generator_gradients_come_from_adversarial_and_mel_losses(task, model, batch, gradients):
    graph, params = nnx.split(model.generator)

    def loss(params, batch):
        audio, made = batch["audio"][:, INNER], generated(nnx.merge(graph, params), batch)
        judges = model.discriminators
        terms = spectral_losses(made, audio) | adversarial_losses(judges(audio), judges(made))
        return sum(weight * terms[name] for name, weight in task.loss_weights.items())

    assert_trees_close(gradients["generator"], jax.jit(jax.grad(loss))(params, batch))


def as_dicts(findings):
    return {name: dict(value) for name, value in findings._asdict().items()}


def assert_trees_close(ours, theirs):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * largest)


def test_generator_and_discriminators_use_their_own_learning_rates(model, gradients):
    """The first step of Adam changes each parameter with a gradient by its learning rate."""
    rates = {"generator": 1e-3, "discriminators": 3e-3}
    optimizer = adversarial(rates["generator"], rates["discriminators"])
    params = states.split(model)[1]
    updates, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    moved = jax.tree.map(lambda update: np.abs(update).max(), updates)
    assert {side: max(jax.tree.leaves(moved[side])) for side in rates} == pytest.approx(rates, rel=1e-2)


def test_evaluation_and_export_use_the_generator_alone(task, model, tmp_path):
    alone = VocoderTask(task.mixture, config=SMALL, heldout_crops=2)
    for evaluator in (CropBaseline(), CropError(), CropGallery()):
        findings = evaluator(task, states.split(model)), evaluator(alone, states.split(model.generator))
        jax.tree.map(np.testing.assert_array_equal, *map(as_dicts, findings))
    task.save(tmp_path, model, {})
    loaded, config = load(tmp_path, MELGAN)
    assert config == SMALL
    again = task.load(str(tmp_path))
    for network in (loaded, again.generator):
        assert_trees_close(nnx.state(network), nnx.state(model.generator))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"discriminators": dataclasses.replace(JUDGES, windows=(256, 4096))}, r"^crop_frames is .*\b13 frames"),
        ({"loss_weights": {"mel": 1.0, "discriminator": 2.0}}, r"^loss_weights .*\bdiscriminator\b.*\b1\b"),
        ({"crop_frames": 6}, r"^crop_frames is 6\b.*\b7 frames"),
    ],
)
def test_invalid_settings_raise_input_error(task, values, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(task, **values)
