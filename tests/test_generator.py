import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectrodiff.audio.mel import LOG_FLOOR
from spectrodiff.config import from_dict, to_dict
from spectrodiff.errors import InputError
from spectrodiff.vocoder.generator import Generator, GeneratorConfig, frame_noise, receptive_frames
from spectrodiff.vocoder.layers import Conv
from spectrodiff.vocoder.losses import spectral_losses, total

TINY = GeneratorConfig(channels=32)
CORRECTING = GeneratorConfig(channels=16, factors=(2, 2), dilations=(1, 3), excitation="griffin_lim")


def make_trained(cfg):
    """A generator with nonzero corrections, as if it were trained."""
    generator = Generator(cfg, rngs=nnx.Rngs(0))
    if cfg.corrects:
        generator.leave.direction[...] += 0.1
    return generator


def count_parameters(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def test_output_has_a_hop_per_frame_and_is_bounded():
    audio = nnx.jit(Generator(TINY, rngs=nnx.Rngs(0)))(10.0 * jax.random.normal(jax.random.key(0), (2, 7, 128)))
    assert audio.shape == (2, 7 * 320)
    assert float(jnp.abs(audio).max()) <= 1.0


def test_default_generator_has_4_million_parameters():
    generator = nnx.eval_shape(lambda: Generator(GeneratorConfig(), rngs=nnx.Rngs(0)))
    assert count_parameters(generator) == pytest.approx(4.0e6, rel=0.02)


@pytest.mark.parametrize("cfg", [TINY, GeneratorConfig(32, (10, 8, 4), (1, 3), "noise"), CORRECTING])
def test_receptive_frames_equal_the_measured_field(cfg):
    """Measured by a change of the middle frame of the mel and, if there is one, of the excitation."""
    generator, frames, reach = nnx.jit(make_trained(cfg)), 61, receptive_frames(cfg)
    mel = jax.random.normal(jax.random.key(0), (1, frames, 128))
    audio = jax.random.normal(jax.random.key(1), (1, frames * 320)) if cfg.corrects else None
    changed = audio if audio is None else audio.at[:, 30 * 320 : 31 * 320].add(1.0)
    change = generator(mel.at[:, 30].add(3.0), None, changed) - generator(mel, None, audio)
    answered = np.flatnonzero(np.abs(change[0]).reshape(frames, 320).max(axis=1))
    slack = 4 if cfg.corrects else 2  # STFT frames end within the hops that they touch
    assert 30 - reach <= answered.min() <= 30 - reach + slack
    assert 30 + reach - slack <= answered.max() <= 30 + reach


def test_weight_norm_ignores_the_scale_of_the_direction():
    conv = Conv(3, 5, 4, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 9, 3))
    before = conv(x)
    conv.direction[...] = conv.direction[...] * 7.0
    np.testing.assert_allclose(conv(x), before, rtol=1e-4, atol=1e-5)
    conv.gain[...] = conv.gain[...] * 2.0
    np.testing.assert_allclose(conv(x), 2 * before, rtol=1e-4, atol=1e-5)


def test_upsampling_with_a_box_kernel_repeats_samples():
    conv = Conv(1, 1, 4, upsampling=2, rngs=nnx.Rngs(0))
    conv.direction[...] = jnp.ones((4, 1, 1))
    conv.gain[...] = jnp.array([2.0])  # the norm of four ones, so that the kernel has values of 1
    audio = conv(jnp.array([[[0.0], [1.0], [0.0]]]))[0, :, 0]
    np.testing.assert_allclose(audio, [0, 1, 1, 1, 1, 0], atol=1e-6)


def test_constant_mel_gives_periodic_audio_without_excitation():
    """Without excitation all frames of audio are equal; with noise, no two are."""
    mel = jnp.full((1, 40, 128), -3.0)
    for excitation, alike in (("none", True), ("noise", False)):
        audio = Generator(GeneratorConfig(channels=16, excitation=excitation), rngs=nnx.Rngs(0))(mel)[0]
        inner = np.asarray(audio).reshape(40, 320)[15:25]
        assert np.allclose(inner[:-1], inner[1:], atol=1e-5) == alike


def test_correction_starts_at_zero_with_nonzero_gradient():
    """The output layer gets a gradient in the first step, before the output depends on the other layers."""
    generator = Generator(CORRECTING, rngs=nnx.Rngs(0))
    mel, audio = jnp.full((1, 10, 128), -3.0), 0.1 * jax.random.normal(jax.random.key(0), (1, 3200))
    correct = nnx.jit(lambda generator: generator(mel, excitation=audio))
    np.testing.assert_array_equal(correct(generator), audio)
    gradient = nnx.jit(nnx.grad(lambda generator: jnp.square(generator(mel, excitation=audio)).sum()))(generator)
    assert np.abs(gradient["leave"]["direction"][...]).max() > 1e-6
    assert np.abs(correct(make_trained(CORRECTING)) - audio).max() > 1e-3


def test_corrections_scale_with_the_level_of_the_audio():
    """A gain of mel and excitation is a gain of the output, once the network's input no longer shows the level."""
    generator = make_trained(CORRECTING)
    generator.enter.gain[...] *= 0.0
    mel = jax.random.uniform(jax.random.key(0), (1, 10, 128), minval=-5.0, maxval=0.0)
    audio = 0.01 * jax.random.normal(jax.random.key(1), (1, 3200))
    correct = nnx.jit(lambda mel, audio: generator(mel, excitation=audio))
    np.testing.assert_allclose(correct(mel + np.log(3.0), 3 * audio), 3 * correct(mel, audio), rtol=1e-3, atol=1e-5)


def test_frame_noise_depends_on_the_frame_index_alone():
    noise = frame_noise(jnp.array([0, 5]), 10).reshape(2, 10, 320)
    np.testing.assert_array_equal(noise[0, 5:], noise[1, :5])
    assert float(noise.std()) == pytest.approx(1.0, abs=0.03)
    assert abs(np.corrcoef(noise[0, 0], noise[0, 1])[0, 1]) < 0.2


@pytest.mark.parametrize("excitation", ["none", "noise"])
def test_silent_frames_stay_silent_for_any_weights(excitation):
    """The other frames of this untrained generator do not."""
    generator = Generator(GeneratorConfig(channels=16, excitation=excitation), rngs=nnx.Rngs(0))
    mel = jnp.full((1, 40, 128), LOG_FLOOR).at[:, 20:].set(-3.0)
    audio = np.abs(np.asarray(generator(mel))[0]).reshape(40, 320).max(axis=1)
    assert audio[:19].max() < 1e-3  # -60 dBFS
    assert audio[21:].min() > 1e-3


@pytest.mark.parametrize(("excitation", "product"), [("none", 320), ("griffin_lim", 4)])
def test_factors_must_multiply_to_the_hop(excitation, product):
    with pytest.raises(InputError, match=rf"\bfactors \(8, 4, 4\).*\b{product}\b"):
        Generator(GeneratorConfig(factors=(8, 4, 4), excitation=excitation), rngs=nnx.Rngs(0))


def test_refiner_requires_griffin_lim_excitation():
    with pytest.raises(InputError, match="griffin_lim"):
        GeneratorConfig(excitation="noise", refiner="demo")


def test_config_accepts_lists_from_json():
    assert from_dict(GeneratorConfig, to_dict(TINY) | {"factors": [8, 5, 4, 2]}) == TINY


def test_spectral_losses_train_the_generator():
    generator = Generator(GeneratorConfig(channels=16, factors=(20, 16), dilations=(1,)), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(generator, optax.adam(3e-3), wrt=nnx.Param)
    mel = jnp.full((1, 8, 128), -3.0)
    target = 0.3 * jnp.sin(2 * jnp.pi * 200 * jnp.arange(8 * 320) / 16000)[None]

    @nnx.jit
    def train_step(generator, optimizer):
        loss, grads = nnx.value_and_grad(
            lambda g: total(spectral_losses(g(mel), target), {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0})
        )(generator)
        optimizer.update(generator, grads)
        return loss

    losses = [float(train_step(generator, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.6 * losses[0]
