"""The texture decoder, which predicts a mean mel and samples its residual (the texture)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, jitted, windows_of

from spectrodiff.audio.mel import mel_frequencies
from spectrodiff.config import from_dict, to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.objective import X0, Preconditioned
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import EvenLogSNR, LogNormal, NoiseLevel
from spectrodiff.errors import InputError
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.models.texture_decoder import TextureConfig, TextureSamplingConfig
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training.spectrogram import SpectrogramTask

STD = 0.2
NOISE_FREE = Process(
    Preconditioned(STD), LogNormal(19.0, 0.1), EvenLogSNR(-2.8, 9.2)
)  # trains at noise levels near zero
MEAN = DiffusionConfig(process=OURS.decoder.process)
DECODER = TextureConfig(mean=-0.3, std=0.375, mean_decoder=MEAN, channels=(4, 8), crop_frames=32)
CONFIG = dataclasses.replace(OURS, decoder=DECODER)
KEYS = jax.random.split(jax.random.key(0), 2)


@pytest.fixture(scope="module")
def model():
    return SpectrogramModel(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def model_inputs():
    """Tokens, context and context mask of two windows, of which the second has no context."""
    context = jax.random.uniform(jax.random.key(1), (2, 256, 128), minval=-1.0)
    tokens = jnp.asarray(windows_of(NoteTokenizer(CONFIG.tokenizer), 128, 2))
    return tokens, context, jnp.arange(256) < jnp.array([[256], [0]])


@jitted
def encode(model, *model_inputs):
    return model.encode(*model_inputs, 256)


sampler_of = functools.cache(window_sampler)  # traces each program once


def sampled(model, model_inputs, steps, keys=KEYS, tone_temperature=1.0):
    graph, *weights = nnx.split(model)
    sampling = TextureSamplingConfig(steps=steps, tone_temperature=tone_temperature)
    options = dataclasses.replace(DECODER, sampling=sampling).options()
    return np.asarray(sampler_of(graph)(weights, *model_inputs, keys, options))


def test_zero_steps_sample_the_mean(model, model_inputs):
    """The mean is the diffusion decoder's x0 for z = 0 at the noisiest level: the sketch plus the output."""
    conditioning = encode(model, *model_inputs)
    evaluate = jitted(lambda network, model_inputs, z: network(network.cache(model_inputs), z, jnp.float32(-20.0)))
    output = evaluate(model.decoder.mean_decoder, conditioning, jnp.zeros((2, 256, 128)))
    expected = np.clip(-0.3 + 0.375 * (conditioning.sketch + output), -1.0, 1.0)
    np.testing.assert_allclose(sampled(model, model_inputs, 0), expected, atol=1e-4)


def test_one_step_matches_one_evaluation_of_the_network(model, model_inputs):
    """`model(...)` predicts the objective's target, which determines the x0 of a single step."""
    objective, levels = DECODER.process.objective, DECODER.process.schedule(1)
    level = NoiseLevel(levels[0])
    mean = jitted(lambda decoder, model_inputs: decoder.mean(model_inputs, 256))(
        model.decoder, encode(model, *model_inputs)
    )
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], (256, 128)) for key in KEYS])
    z = objective.start(noise, level, mean)
    output = jitted(lambda model, *inputs: model(*inputs))(
        model, *model_inputs, objective.inputs(z, level, mean), levels[0]
    )
    x0 = objective.to_x0(output, z, level, mean)
    np.testing.assert_allclose(sampled(model, model_inputs, 1), np.clip(-0.3 + 0.375 * x0, -1.0, 1.0), atol=1e-4)


def test_tone_temperature_scales_the_texture_below_1500_hz(model, model_inputs):
    mean, whole, half = (sampled(model, model_inputs, *options) for options in ((0,), (2,), (2, KEYS, 0.5)))
    low = mel_frequencies() < 1500.0
    assert 40 < low.sum() < 60
    np.testing.assert_array_equal(half[..., ~low], whole[..., ~low])
    np.testing.assert_allclose(half[..., low], (0.5 * (mean + whole))[..., low], atol=1e-5)


def test_textures_depend_on_the_keys_only(model, model_inputs):
    both = sampled(model, model_inputs, 2)
    np.testing.assert_array_equal(both, sampled(model, model_inputs, 2))
    alone = sampled(model, tuple(array[1:] for array in model_inputs), 2, KEYS[1:])
    np.testing.assert_allclose(both[1:], alone, atol=1e-4)
    assert np.abs(both - sampled(model, model_inputs, 2, KEYS[::-1])).mean() > 1e-3
    assert np.abs(both).max() <= 1.0 + 1e-6


def test_mean_gets_no_gradient_from_the_texture_loss(model, model_inputs):
    target, mask = model_inputs[1], jnp.ones((2, 256), bool)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def losses(params):
        whole = nnx.merge(graph, params, rest)
        _, metrics = whole.decoder.loss(whole.encode(*model_inputs, 256), target, mask, jax.random.key(2))
        return {name: loss.sum() for name, loss in metrics.items()}

    gradients = jax.jit(jax.jacrev(losses))(params)
    largest = {
        (loss, part): max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradients[f"{loss}_loss"]["decoder"][part]))
        for loss in ("mean", "texture")
        for part in ("mean_decoder", "texture")
    }
    assert largest["texture", "mean_decoder"] == largest["mean", "texture"] == 0.0
    assert largest["texture", "texture"] > 0.0
    assert largest["mean", "mean_decoder"] > 0.0


@pytest.mark.parametrize(("mean_weight", "texture_weight"), [(0.5, 2.0), (0.5, 0.0), (0.0, 2.0)])
def test_loss_is_the_weighted_sum_of_mean_and_texture(model_inputs, mean_weight, texture_weight):
    """With a weight of 0 the texture is not computed."""
    decoder = dataclasses.replace(DECODER, mean_weight=mean_weight, texture_weight=texture_weight)
    model = SpectrogramModel(dataclasses.replace(CONFIG, decoder=decoder), rngs=nnx.Rngs(0))
    evaluate = jitted(lambda decoder, *inputs: decoder.loss(*inputs, jnp.ones((2, 256), bool), jax.random.key(2)))
    loss, terms = evaluate(model.decoder, encode(model, *model_inputs), model_inputs[1])
    assert terms.keys() == ({"mean_loss", "texture_loss"} if texture_weight else {"mean_loss"})
    expected = mean_weight * terms["mean_loss"] + texture_weight * terms.get("texture_loss", 0.0)
    assert float(loss.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_loss_of_the_mean_is_that_of_its_objective(model_inputs):
    class Squared(X0):
        def error(self, difference):
            return difference**2

    decoder = dataclasses.replace(DECODER, mean_decoder=DiffusionConfig(process=Process(Squared())), texture_weight=0.0)
    model = SpectrogramModel(dataclasses.replace(CONFIG, decoder=decoder), rngs=nnx.Rngs(0))
    conditioning, target = encode(model, *model_inputs), model_inputs[1]
    mean = jitted(lambda decoder, conditioning: decoder.mean(conditioning, 256))(model.decoder, conditioning)
    evaluate = jitted(lambda decoder, *inputs: decoder.loss(*inputs, jnp.ones((2, 256), bool), jax.random.key(2))[0])
    expected = ((mean - (target + 0.3) / 0.375) ** 2).mean((1, 2))
    np.testing.assert_allclose(evaluate(model.decoder, conditioning, target), expected, rtol=1e-4)


def test_texture_crops_include_the_preceding_frames(model_inputs):
    """Without noise the first input plane is the residual, from which the position of the crop follows."""
    model = SpectrogramModel(
        dataclasses.replace(CONFIG, decoder=dataclasses.replace(DECODER, process=NOISE_FREE)), rngs=nnx.Rngs(0)
    )
    conditioning = encode(model, *model_inputs)

    @jitted
    def planes(decoder, conditioning, target, key):
        """The input of the U-Net."""
        planes = []
        decoder.texture = lambda texture_input, logsnr: (planes.append(texture_input), texture_input[..., 0])[1]
        decoder.loss(conditioning, target, jnp.ones((2, 256), bool), key)
        return planes.pop()

    target = jax.random.uniform(jax.random.key(3), (2, 256, 128), minval=-1.0)
    starts = set()
    for seed in range(6):
        texture_input = np.asarray(planes(model.decoder, conditioning, target, jax.random.key(seed)))
        x0 = (np.asarray(target) + 0.3) / 0.375
        for row in range(2):
            crop = texture_input[row, 16:, :, 1] + STD * texture_input[row, 16:, :, 0]
            errors = [np.abs(x0[row, at : at + 32] - crop).max() for at in range(225)]
            at = int(np.argmin(errors))
            assert errors[at] < 0.01
            starts.add(at)
            before = np.asarray(model_inputs[1])[row] if row == 0 else np.zeros((0, 128))
            line = np.concatenate([(before[-16:] + 0.3) / 0.375, x0[row]]) if row == 0 else x0[row]
            preceding = line[max(0, at + len(line) - 256 - 16) : at + len(line) - 256]
            context_rows = texture_input[row, 16 - len(preceding) : 16]
            np.testing.assert_allclose(context_rows[..., 1], preceding, atol=1e-5)
            assert (context_rows[..., 4] == 1.0).all()
            assert (texture_input[row, : 16 - len(preceding), :, 4] == 0.0).all()
    assert len(starts) > 3


def test_diffusion_checkpoint_initialises_the_mean_decoder(checkpoint, our_model, corpus):
    model = SpectrogramTask(Mixture(str(corpus)), CONFIG).load(str(checkpoint))
    theirs, ours = (nnx.to_flat_state(nnx.state(part)) for part in (our_model.decoder, model.decoder.mean_decoder))
    for (name, a), (same, b) in zip(theirs, ours, strict=True):
        assert name == same
        np.testing.assert_array_equal(a[...], b[...])


def test_config_round_trips_through_json():
    assert from_dict(SpectrogramConfig, to_dict(CONFIG)) == CONFIG


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_frames": 31},
        {"crop_frames": 512},
        {"channels": ()},
        {"channels": (0,)},
        {"process": Process()},
        {"mean_decoder": DiffusionConfig(condition_drop=0.5)},
    ],
)
def test_invalid_settings_raise_input_error(wrong):
    with pytest.raises(InputError):
        dataclasses.replace(DECODER, **wrong)
