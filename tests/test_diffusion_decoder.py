import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from inputs import OURS, PAPER, conditioning, jitted

from spectrodiff.diffusion.objective import Eps
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import LogNormal, logsnr_at
from spectrodiff.models import diffusion_decoder
from spectrodiff.models.decoder import Decoder
from spectrodiff.models.diffusion_decoder import DiffusionConfig, DiffusionDecoder

KEYS = jax.random.split(jax.random.key(0), 4)
Z = jax.random.normal(KEYS[0], (2, 16, 128))
MEMORY = jax.random.normal(KEYS[1], (2, 24, 32))
MASK = jnp.arange(24) < jnp.array([[9], [24]])
SKETCH = jax.random.normal(KEYS[2], (2, 16, 128))
LOGSNR = jnp.array([-3.0, 1.0])


@jitted
def decode(decoder, z, logsnr, memory, mask):
    return decoder(decoder.cache(conditioning(memory, mask)), z, logsnr)


@pytest.fixture(scope="module")
def decoder(paper_model):
    return paper_model.decoder


def test_output_shape_dtype_and_decoder_protocol(decoder):
    output = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    assert (output.shape, output.dtype) == (Z.shape, jnp.float32)
    assert isinstance(decoder, Decoder)


def test_masked_memory_has_no_effect(decoder):
    wild = jnp.where(MASK[..., None], MEMORY, 100.0)
    np.testing.assert_array_equal(decode(decoder, Z, LOGSNR, MEMORY, MASK), decode(decoder, Z, LOGSNR, wild, MASK))


def test_empty_memory_disables_cross_attention(decoder):
    without = nnx.clone(decoder)
    for block in without.blocks:
        block.cross_attention.out.kernel[...] = jnp.zeros_like(block.cross_attention.out.kernel[...])
    empty = decode(decoder, Z, LOGSNR, MEMORY, jnp.zeros_like(MASK))
    np.testing.assert_allclose(empty, decode(without, Z, LOGSNR, MEMORY, MASK), atol=1e-6)
    assert float(jnp.abs(empty - decode(decoder, Z, LOGSNR, MEMORY, MASK)).max()) > 1e-3


def test_noise_level_is_scalar_or_per_example(decoder):
    each = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    for b, logsnr in enumerate(LOGSNR):
        np.testing.assert_allclose(decode(decoder, Z, logsnr, MEMORY, MASK)[b], each[b], atol=1e-5)
    assert float(jnp.abs(decode(decoder, Z, LOGSNR[1], MEMORY, MASK)[0] - each[0]).max()) > 1e-3


def test_noise_level_is_embedded_as_sinusoids_of_time(decoder, monkeypatch):
    """Sines, then cosines, of 2e4 t times 16 rates from 1 down to 1 / 2e4."""
    time = 0.37
    angles = 2e4 * time * np.exp(-np.log(2e4) * np.arange(16) / 15)
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    sinusoids = diffusion_decoder.sinusoids

    class EmbeddingError(Exception):
        """Carries the embedding and ends the call there."""

    def raise_embedding(*args):
        raise EmbeddingError(sinusoids(*args))

    monkeypatch.setattr(diffusion_decoder, "sinusoids", raise_embedding)
    with pytest.raises(EmbeddingError) as seen:
        decoder(decoder.cache(conditioning(MEMORY[:1], MASK[:1])), Z[:1], logsnr_at(jnp.array([time])))
    # float32 has 7400 radians to about a thousandth.
    np.testing.assert_allclose(seen.value.args[0][0], expected, atol=5e-3)


def test_examples_of_a_batch_are_independent(decoder):
    other = decode(decoder, Z.at[1].add(1.0), LOGSNR.at[1].add(1.0), MEMORY.at[1].add(1.0), MASK)
    output = decode(decoder, Z, LOGSNR, MEMORY, MASK)
    np.testing.assert_allclose(other[0], output[0], atol=1e-6)
    assert float(jnp.abs(other[1] - output[1]).max()) > 0.1


def test_frames_attend_to_all_frames_and_their_positions(decoder):
    gradient = jax.jit(jax.grad(lambda z: decode(decoder, z, LOGSNR, MEMORY, MASK)[0, 0].sum()))(Z)
    assert bool((jnp.abs(gradient[0]).sum(-1) > 0).all())
    assert not gradient[1].any()
    output, backwards = (decode(decoder, z, LOGSNR, MEMORY, MASK) for z in (Z, Z[:, ::-1]))
    assert float(jnp.abs(output - backwards[:, ::-1]).max()) > 0.1


# ---- derivatives


def test_jvp_equals_finite_differences(decoder):
    """Consistency models need derivatives of the output with respect to z and log-SNR, in any direction."""
    direction = jax.random.normal(KEYS[3], Z.shape), jnp.array([1.0, -0.7])
    graph, state = nnx.split(decoder)

    def output(z, logsnr):
        return decode(nnx.merge(graph, state), z, logsnr, MEMORY, MASK)

    derivatives = jax.jit(lambda z_dot, logsnr_dot: jax.jvp(output, (Z, LOGSNR), (z_dot, logsnr_dot))[1])
    for z_dot, logsnr_dot in ((direction[0], 0 * LOGSNR), (0 * Z, direction[1]), direction):
        # The fastest sinusoid has 2e4 radians over times 0 to 1, so about half a radian over this step.
        step = 1e-2 if not logsnr_dot.any() else 2e-4
        after, before = (output(Z + sign * step * z_dot, LOGSNR + sign * step * logsnr_dot) for sign in (0.5, -0.5))
        difference = np.ravel((after - before) / step)
        derivative = np.ravel(derivatives(z_dot, logsnr_dot))
        assert np.linalg.norm(derivative) > 1.0
        assert np.linalg.norm(difference - derivative) < 0.02 * np.linalg.norm(derivative)


# ---- loss


@pytest.fixture(scope="module")
def decoder_with_sketch():
    """A decoder that takes the sketch of a note roll, and conditioning with one."""
    config = dataclasses.replace(OURS.decoder, condition_drop=0.3)
    model = dataclasses.replace(OURS.model, dropout=0.1)
    return DiffusionDecoder(config, model, rngs=nnx.Rngs(0)), conditioning(MEMORY, MASK, SKETCH)


def test_loss_draws_noise_levels_and_condition_dropout_by_key(decoder_with_sketch, monkeypatch):
    """Levels follow the distribution of the process, and `condition_drop` of the examples lose all conditioning."""
    decoder, _ = decoder_with_sketch
    process = Process(decoder.config.process.objective, LogNormal(-1.0, 0.5))
    monkeypatch.setattr(decoder, "config", dataclasses.replace(decoder.config, process=process))
    seen = {}

    def loss_at(self, conditioning, target, frame_mask, logsnr, key, rngs=None):
        seen[jax.random.key_data(key).tobytes()] = conditioning, logsnr
        return jnp.zeros(len(target))

    monkeypatch.setattr(DiffusionDecoder, "loss_at", loss_at)
    many = 4000
    given = conditioning(jnp.ones((many, 1, 1)), jnp.ones((many, 1), bool), jnp.ones((many, 1, 128)))
    for key in (KEYS[0], KEYS[1]):
        decoder.loss(given, jnp.zeros((many, 1, 128)), jnp.ones((many, 1), bool), key)
    (first, levels), (second, other_levels) = seen.values()
    assert scipy.stats.kstest(np.asarray(levels), scipy.stats.norm(-1.0, 0.5).cdf).statistic < 0.026
    assert float(first.mask.mean()) == pytest.approx(0.7, abs=0.03)
    np.testing.assert_array_equal(first.mask[:, 0], first.sketch[:, 0, 0] == 1.0)
    assert (levels != other_levels).any()
    assert (first.mask != second.mask).any()
    assert abs(np.corrcoef(first.mask[:, 0], levels)[0, 1]) < 0.06


def test_loss_at_a_level_is_the_process_loss_of_normalized_mels(decoder_with_sketch):
    """The sketch is the prior, and dropout applies only if rngs are given."""
    decoder, given = decoder_with_sketch
    target = jax.random.uniform(KEYS[0], (2, 16, 128), minval=-1.0)
    frame_mask = jnp.arange(16) < jnp.array([[16], [7]])

    @jitted
    def losses(decoder, target, rngs_key):
        kept = decoder.loss_at(given, target, frame_mask, LOGSNR, KEYS[3])
        dropped = decoder.loss_at(given, target, frame_mask, LOGSNR, KEYS[3], nnx.Rngs(dropout=rngs_key))
        network = lambda z, logsnr: decoder(decoder.cache(given), z, logsnr)  # noqa: E731
        x0 = (target - decoder.config.mean) / decoder.config.std
        expected = decoder.config.process.loss(network, x0, frame_mask, LOGSNR, KEYS[3], SKETCH)
        return kept, dropped, expected

    kept, dropped, expected = losses(decoder, target, jax.random.key(1))
    np.testing.assert_allclose(kept, expected, rtol=1e-6)
    assert float(jnp.abs(dropped - kept).min()) > 1e-4


def test_loss_of_zero_outputs_is_the_mean_absolute_noise():
    """With the paper's objective, it is E|eps| = sqrt(2 / pi)."""
    decoder = DiffusionDecoder(DiffusionConfig(condition_drop=0.0), PAPER.model, rngs=nnx.Rngs(0))
    decoder.out.kernel[...] = jnp.zeros_like(decoder.out.kernel[...])
    losses, metrics = decoder.loss(conditioning(MEMORY, MASK), 0.1 * Z, jnp.ones((2, 16), bool), KEYS[0])
    np.testing.assert_allclose(losses, np.full(2, np.sqrt(2 / np.pi)), atol=0.05)
    assert metrics == {}
    assert decoder.config.process.objective == Eps()
