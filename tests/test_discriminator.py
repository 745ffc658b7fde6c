import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spectrodiff.errors import InputError
from spectrodiff.vocoder.discriminator import DiscriminatorConfig, Discriminators
from spectrodiff.vocoder.losses import adversarial_losses, hinge, relativistic

SMALL = DiscriminatorConfig(scales=2, wave_channels=4, windows=(256, 512), spectrum_channels=4)


def test_discriminators_return_features_and_one_score_per_place():
    judged = jax.jit(Discriminators(SMALL, rngs=nnx.Rngs(0)))(jnp.zeros((2, 8192)))
    assert [len(features) for features in judged] == [6, 6, 7, 7]
    spectra, waves = judged[:2], judged[2:]
    assert [features[-1].shape for features in spectra] == [(2, 125, 17, 1), (2, 61, 33, 1)]
    assert [features[-1].shape for features in waves] == [(2, 8192 // 256, 1), (2, 4096 // 256, 1)]


def test_patch_discriminator_scores_patches_of_bins():
    cfg = DiscriminatorConfig(scales=0, windows=(256,), spectrum_channels=4, patch=8)
    (features,) = jax.jit(Discriminators(cfg, rngs=nnx.Rngs(0)))(jnp.zeros((2, 8192)))
    assert [layer.shape for layer in features] == [(2, 125, 17, 4)] * 4 + [(2, 125, 17, 1)]


@pytest.mark.parametrize(
    "config",
    [{"scales": 1, "windows": ()}, {"scales": 0, "windows": (256,)}, {"scales": 0, "windows": (256,), "patch": 8}],
)
def test_each_discriminator_learns_to_tell_tone_from_noise(config):
    judges = Discriminators(DiscriminatorConfig(wave_channels=4, spectrum_channels=4, **config), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(judges, optax.adam(3e-3), wrt=nnx.Param)
    phases = jnp.linspace(0, 6, 4)[:, None]
    tone = 0.3 * jnp.sin(2 * np.pi * 440 * jnp.arange(4096) / 16000 + phases)
    noise = 0.2 * jax.random.normal(jax.random.key(0), (4, 4096))

    @nnx.jit
    def train_step(judges, optimizer):
        loss, gradients = nnx.value_and_grad(lambda j: adversarial_losses(j(tone), j(noise))["discriminator"])(judges)
        optimizer.update(judges, gradients)
        return loss

    losses = [float(train_step(judges, optimizer)) for _ in range(40)]
    assert losses[-1] < 0.3 * losses[0]


def test_adversarial_losses_equal_hand_computed_values():
    real = [[jnp.array([1.0, 3.0]), jnp.array([1.0, 0.5])]]
    made = [[jnp.array([2.0, 3.0]), jnp.array([0.0, -2.0])]]
    squares = adversarial_losses(real, made)
    assert squares["discriminator"] == pytest.approx((0 + 0.25) / 2 + (0 + 4) / 2)
    assert squares["adversarial"] == pytest.approx((1 + 9) / 2)
    assert squares["features"] == pytest.approx(0.5)
    hinged = adversarial_losses(real, made, hinge)
    assert hinged["discriminator"] == pytest.approx((0 + 0.5) / 2 + (1 + 0) / 2)
    assert hinged["adversarial"] == pytest.approx(1.0)
    apart = adversarial_losses(real, made, relativistic)
    assert apart["discriminator"] == pytest.approx((np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-2.5))) / 2)
    assert apart["adversarial"] == pytest.approx((np.log1p(np.exp(1.0)) + np.log1p(np.exp(2.5))) / 2)


@pytest.mark.parametrize(
    "values",
    [
        {"scales": 0, "windows": ()},
        {"windows": (250,)},
        {"wave_channels": 0},
        {"wave_channels": 9},
        {"scales": -1},
        {"patch": 0},
    ],
)
def test_invalid_configs_raise_input_error(values):
    with pytest.raises(InputError):
        DiscriminatorConfig(**values)
