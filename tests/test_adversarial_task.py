import dataclasses
import functools

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
from spectrodiff.training.steps import Others, make_train_step
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
def both(task, model, batch):
    graph, params, buffers = states.split(model)

    def loss(params, batch):
        return task.loss(nnx.merge(graph, params, buffers), batch, jax.random.key(0), ALONE)

    return jax.jit(jax.grad(loss, has_aux=True))(params, batch)[0]


@jitted
def heard(generator, batch):
    """What the generator makes of the crop: its noise is of frames that the step's key draws, its margins left out."""
    frames = CROP + 2 * MARGIN
    first = jax.random.randint(jax.random.key(0), (2,), 0, 2**30)
    return generator(mel_of(batch, frames), first)[:, INNER]


def test_the_discriminators_learn_to_tell_and_nothing_else(model, batch, both):
    def told(params, audio, made):
        judges = nnx.merge(graph, params)
        return adversarial_losses(judges(audio), judges(made))["discriminator"]

    graph, params = nnx.split(model.discriminators)
    expected = jax.jit(jax.grad(told))(params, batch["audio"][:, INNER], heard(model.generator, batch))
    assert_same(both["discriminators"], expected)


def test_the_generator_learns_to_be_believed_and_to_sound_alike(task, model, batch, both):
    graph, params = nnx.split(model.generator)

    def told(params, batch):
        audio, made = batch["audio"][:, INNER], heard(nnx.merge(graph, params), batch)
        judges = model.discriminators
        terms = spectral_losses(made, audio) | adversarial_losses(judges(audio), judges(made))
        return sum(weight * terms[name] for name, weight in task.loss_weights.items())

    assert_same(both["generator"], jax.jit(jax.grad(told))(params, batch))


def dict_of(findings):
    return {name: dict(value) for name, value in findings._asdict().items()}


def assert_same(ours, theirs):
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(theirs))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5 * largest)


def test_one_step_moves_both_each_at_its_rate(task, model, batch):
    """Adam's first step moves each parameter that has a gradient by the learning rate."""
    rates = {"generator": 1e-3, "discriminators": 3e-3}
    optimizer = adversarial(rates["generator"], rates["discriminators"])
    graph, params, frozen = states.split(model)
    step = make_train_step(functools.partial(nnx.merge, graph), task.loss, optimizer, jax.random.key(0))
    before = jax.tree.map(np.asarray, params)
    state, metrics = step(states.create(jax.tree.map(jnp.copy, params), frozen, optimizer), batch)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.params, before)
    assert {side: max(jax.tree.leaves(moved[side])) for side in rates} == pytest.approx(rates, rel=1e-2)
    assert metrics["skipped"] == 0


def test_only_the_generator_is_evaluated_shown_and_exported(task, model, tmp_path):
    alone = VocoderTask(task.mixture, config=SMALL, heldout_crops=2)
    for evaluator in (CropBaseline(), CropError(), CropGallery()):
        both = evaluator(task, states.split(model)), evaluator(alone, states.split(model.generator))
        jax.tree.map(np.testing.assert_array_equal, *map(dict_of, both))
    task.save(tmp_path, model, {})
    loaded, config = load(tmp_path, MELGAN)
    assert config == SMALL
    again = task.load(str(tmp_path))
    for network in (loaded, again.generator):
        assert_same(nnx.state(network), nnx.state(model.generator))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"discriminators": dataclasses.replace(JUDGES, windows=(256, 4096))}, "needs 13 frames or more"),
        ({"loss_weights": {"mel": 1.0, "discriminator": 2.0}}, "always 1"),
        ({"crop_frames": 6}, "need 7 frames or more"),
    ],
)
def test_what_cannot_be_learnt_is_named(task, values, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(task, **values)
