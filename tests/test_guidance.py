import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectrodiff.diffusion.guidance import guide, within
from spectrodiff.diffusion.objective import Eps
from spectrodiff.diffusion.schedule import NoiseLevel

Z = jax.random.normal(jax.random.key(0), (2, 5, 3))
LOGSNR = jnp.array(-1.5)


def pair_eps(z, logsnr):
    """Predictions of eps with and without notes, which differ."""
    conditional, unconditional = jnp.split(z, 2)
    return jnp.concatenate([0.3 * conditional + 0.1, -0.2 * unconditional - 0.05])


@pytest.mark.parametrize("weight", [0.0, 0.7, 1.0, 2.0, 5.0])
def test_guiding_x0_equals_guiding_eps(weight):
    guided = guide(lambda z, logsnr: Eps().to_x0(pair_eps(z, logsnr), z, NoiseLevel(logsnr), 0.0), weight)
    eps = weight * (0.3 * Z + 0.1) + (1 - weight) * (-0.2 * Z - 0.05)
    np.testing.assert_allclose(guided(Z, LOGSNR), Eps().to_x0(eps, Z, NoiseLevel(LOGSNR), 0.0), rtol=1e-5, atol=1e-5)


def test_guidance_evaluates_the_network_once_per_step():
    calls = []

    def pair(z, logsnr):
        calls.append(z.shape)
        return z

    guide(pair, 2.0)(Z, LOGSNR)
    assert calls == [(4, 5, 3)]


@pytest.mark.parametrize(("logsnr", "factor"), [(-2.1, 3.0), (-2.0, 2.0), (0.0, 2.0), (1.0, 2.0), (1.1, 3.0)])
def test_guidance_interval_includes_its_ends(logsnr, factor):
    denoise = within(jnp.array([-2.0, 1.0]), lambda z, logsnr: 2.0 * z, lambda z, logsnr: 3.0 * z)
    np.testing.assert_allclose(denoise(Z, jnp.float32(logsnr)), factor * Z)
