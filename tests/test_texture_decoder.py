"""A mean and its texture: what each of them learns, and what sampling makes of both."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, jitted, windows_of

from spectrodiff.config import from_dict, to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.objective import Preconditioned
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import EvenLogSNR, LogNormal, NoiseLevel
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.models.texture_decoder import TextureConfig, TextureSamplingConfig
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training.spectrogram import SpectrogramTask

STD = 0.2
CLEAN = Process(Preconditioned(STD), LogNormal(19.0, 0.1), EvenLogSNR(-2.8, 9.2))  # learns where there is no noise
DECODER = TextureConfig(mean=-0.3, std=0.375, mean_decoder=OURS.decoder, channels=(4, 8), crop_frames=32)
CONFIG = dataclasses.replace(OURS, decoder=DECODER)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def model():
    return SpectrogramModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def given():
    """Tokens, context and its mask of two windows, of which the second has none before it."""
    context = jax.random.uniform(jax.random.key(1), (2, 256, 128), minval=-1.0)
    tokens = jnp.asarray(windows_of(NoteTokenizer(CONFIG.tokenizer), 128, 2))
    return tokens, context, jnp.arange(256) < jnp.array([[256], [0]])


@jitted
def encode(model, *given):
    return model.encode(*given, 256)


sampler_of = functools.cache(window_sampler)  # so that a program is traced once


def sampled(model, given, steps, keys=KEYS):
    graph, *weights = nnx.split(model)
    options = dataclasses.replace(DECODER, sampling=TextureSamplingConfig(steps=steps)).options()
    return np.asarray(sampler_of(graph)(weights, *given, keys, options))


def test_without_steps_the_mean_is_played(model, given):
    """That is the diffusion decoder's x0 of no signal and no noise: the sketch and what it adds to it."""
    conditioning = encode(model, *given)
    look = jitted(lambda network, given, z: network(network.cache(given), z, jnp.float32(-20.0)))
    output = look(model.decoder.mean_decoder, conditioning, jnp.zeros((2, 256, 128)))
    expected = np.clip(-0.3 + 0.375 * (conditioning.sketch + output), -1.0, 1.0)
    np.testing.assert_allclose(sampled(model, given, 0), expected, atol=1e-4)


def test_one_step_is_one_evaluation_of_the_network(model, given):
    """`model(...)` predicts the objective's target; from it follows the only estimate of x0 that one step has."""
    objective, levels = DECODER.process.objective, DECODER.process.schedule(1)
    level = NoiseLevel(levels[0])
    mean = jitted(lambda decoder, given: decoder.mean(given, 256))(model.decoder, encode(model, *given))
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], (256, 128)) for key in KEYS])
    z = objective.start(noise, level, mean)
    output = jitted(lambda model, *inputs: model(*inputs))(model, *given, objective.inputs(z, level, mean), levels[0])
    x0 = objective.to_x0(output, z, level, mean)
    np.testing.assert_allclose(sampled(model, given, 1), np.clip(-0.3 + 0.375 * x0, -1.0, 1.0), atol=1e-4)


def test_textures_are_of_their_keys(model, given):
    both = sampled(model, given, 2)
    np.testing.assert_array_equal(both, sampled(model, given, 2))
    alone = sampled(model, tuple(array[1:] for array in given), 2, KEYS[1:])
    np.testing.assert_allclose(both[1:], alone, atol=1e-4)
    assert np.abs(both - sampled(model, given, 2, KEYS[::-1])).mean() > 1e-3
    assert np.abs(both).max() <= 1.0 + 1e-6


def test_the_mean_does_not_learn_from_the_texture(model, given):
    target, mask = given[1], jnp.ones((2, 256), bool)

    def gradients(mean_weight, texture_weight):
        weights = {"mean_weight": mean_weight, "texture_weight": texture_weight}
        changed = SpectrogramModel(
            dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, **weights)), rngs=nnx.Rngs(0)
        )
        graph, params, rest = nnx.split(changed, nnx.Param, ...)

        def loss(params):
            whole = nnx.merge(graph, params, rest)
            return whole.decoder.loss(whole.encode(*given, 256), target, mask, jax.random.key(2))[0].sum()

        found = jax.jit(jax.grad(loss))(params)["decoder"]
        return (
            max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found[part])) for part in ("mean_decoder", "texture")
        )

    average, texture = gradients(0.0, 1.0)
    assert average == 0.0
    assert texture > 0.0
    average, texture = gradients(1.0, 0.0)
    assert average > 0.0
    assert texture == 0.0


def test_a_crop_goes_on_from_the_frames_before_it(given, monkeypatch):
    """Without noise the first plane is the residual, so that the crop is known, and with it what should stand ahead."""
    model = SpectrogramModel(
        dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, process=CLEAN)), rngs=nnx.Rngs(0)
    )
    conditioning = encode(model, *given)
    planes = []
    model.decoder.texture = lambda seen, logsnr: (planes.append(seen), seen[..., 0])[1]
    target = jax.random.uniform(jax.random.key(3), (2, 256, 128), minval=-1.0)
    starts = set()
    for seed in range(6):
        model.decoder.loss(conditioning, target, jnp.ones((2, 256), bool), jax.random.key(seed))
        seen = np.asarray(planes.pop())
        x0 = (np.asarray(target) + 0.3) / 0.375
        for row in range(2):
            crop = seen[row, 16:, :, 1] + STD * seen[row, 16:, :, 0]
            errors = [np.abs(x0[row, at : at + 32] - crop).max() for at in range(225)]
            at = int(np.argmin(errors))
            assert errors[at] < 0.01
            starts.add(at)
            before = np.asarray(given[1])[row] if row == 0 else np.zeros((0, 128))
            line = np.concatenate([(before[-16:] + 0.3) / 0.375, x0[row]]) if row == 0 else x0[row]
            ahead = line[max(0, at + len(line) - 256 - 16) : at + len(line) - 256]
            shown = seen[row, 16 - len(ahead) : 16]
            np.testing.assert_allclose(shown[..., 1], ahead, atol=1e-5)
            assert (shown[..., 4] == 1.0).all()
            assert (seen[row, : 16 - len(ahead), :, 4] == 0.0).all()
    assert len(starts) > 3


def test_a_diffusion_decoder_becomes_the_mean(checkpoint, our_model, corpus):
    model = SpectrogramTask(Mixture(str(corpus)), CONFIG).load(str(checkpoint))
    theirs, ours = (nnx.to_flat_state(nnx.state(part)) for part in (our_model.decoder, model.decoder.mean_decoder))
    for (name, a), (same, b) in zip(theirs, ours, strict=True):
        assert name == same
        np.testing.assert_array_equal(a[...], b[...])


def test_its_config_goes_through_json():
    assert from_dict(SpectrogramConfig, to_dict(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    "wrong", [{"crop_frames": 31}, {"crop_frames": 512}, {"channels": ()}, {"channels": (0,)}, {"process": Process()}]
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError):
        dataclasses.replace(DECODER, **wrong)
