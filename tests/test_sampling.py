import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, windows_of

from spectrodiff.diffusion.objective import Preconditioned, V
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import EvenLogSNR, NoiseLevel
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENS, FRAMES, KEYS = 128, 24, jax.random.split(jax.random.key(3), 2)


def model_inputs(config):
    """Tokens, context and context mask of two windows."""
    context = jax.random.uniform(jax.random.key(0), (2, 256, 128), minval=-1.0)
    mask = jnp.arange(256) < jnp.array([[256], [0]])
    return jnp.asarray(windows_of(NoteTokenizer(config.tokenizer), TOKENS, 2)), context, mask


@jitted
def sample_frames(model, tokens, context, mask, keys, options):
    """Sampling of windows short enough to be fast."""
    return model.decoder.sample(model.encode(tokens, context, mask, FRAMES), FRAMES, keys, options)


def sampled(model, config, keys=KEYS, **sampling):
    return sample_frames(model, *model_inputs(config), keys, config.decoder.sampled(**sampling).options())


def with_process(config, process):
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, process=process))


# The paper's network is made to predict v: its eps, divided by alpha = 4.5e-5, would be clipped almost everywhere.
CONFIGS = {
    "paper": with_process(PAPER, Process(V())),
    "ours": OURS,
    "preconditioned": with_process(OURS, Process(Preconditioned(0.5), schedule=EvenLogSNR(-4.0))),
}


@pytest.fixture(scope="module", params=CONFIGS)
def one_evaluation(request):
    """A config, its model, and the x0 estimates at the noisiest level with and without conditioning."""
    config = CONFIGS[request.param]
    model, objective = SpectrogramModel(config, rngs=nnx.Rngs(0)), config.decoder.process.objective
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], (FRAMES, 128)) for key in KEYS])
    logsnr = config.decoder.process.schedule(1)[0]

    @jitted
    def estimates(model, tokens, context, mask):
        kept, level = model.encode(tokens, context, mask, FRAMES), NoiseLevel(logsnr)
        z = objective.start(noise, level, kept.prior)

        def estimate(conditioning):
            output = model.decoder(
                model.decoder.cache(conditioning), objective.inputs(z, level, conditioning.prior), logsnr
            )
            return objective.to_x0(output, z, level, conditioning.prior)

        return estimate(kept), estimate(kept.keep(jnp.zeros(2, bool)))

    return config, model, estimates(model, *model_inputs(config))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_one_sampling_step_matches_manual_computation(one_evaluation, guidance):
    """One evaluation at the noisiest level from noise of each row's key, then guidance, scaling and clipping."""
    config, model, (with_notes, without) = one_evaluation
    x0 = guidance * with_notes + (1 - guidance) * without
    expected = np.clip(config.decoder.mean + config.decoder.std * x0, -1.0, 1.0)
    assert np.mean(np.abs(expected) < 1) > 0.2
    assert np.abs(with_notes - without).max() > 0.01
    ours = sampled(model, config, sampler="ddim", steps=1, guidance=guidance)
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_guidance_interval_limits_guidance_to_its_levels(our_model):
    """An interval without any of the five levels means no guidance, one with all of them full guidance."""
    levels = OURS.decoder.process.schedule(5)

    def guided(*interval):
        return sampled(our_model, OURS, steps=5, guidance=3.0, guidance_interval=interval)

    unguided, always = (sampled(our_model, OURS, steps=5, guidance=weight) for weight in (1.0, 3.0))
    low, high = float(levels[1]), float(levels[3])
    np.testing.assert_allclose(guided(low + 0.1, low + 0.2), unguided, atol=1e-5)
    np.testing.assert_allclose(guided(float(levels[0]) - 0.1, float(levels[-1]) + 0.1), always, atol=1e-5)
    some = guided(low, high)
    assert min(float(jnp.abs(some - other).max()) for other in (unguided, always)) > 1e-3


def test_samples_are_in_range_and_differ_by_key(our_model):
    first, second = (
        sampled(our_model, OURS, jax.random.split(jax.random.key(i), 2), sampler="ddpm", steps=3) for i in (0, 1)
    )
    assert float(jnp.abs(first).max()) <= 1.0 + 1e-6
    assert not np.allclose(first, second, atol=1e-3)


def test_rows_of_a_batch_are_independent(our_model):
    """Swapping rows or changing one of them does not change the others, so a song sounds the same in any batch."""
    tokens, context, mask = model_inputs(OURS)
    options = OURS.decoder.sampled(sampler="ddpm", steps=3).options()
    both = sample_frames(our_model, tokens, context, mask, KEYS, options)
    swap = jnp.array([1, 0])
    swapped = sample_frames(our_model, tokens[swap], context[swap], mask[swap], KEYS[swap], options)
    np.testing.assert_allclose(swapped, both[swap], atol=1e-5)
    keys = jnp.stack([KEYS[0], jax.random.key(9)])
    other = sample_frames(our_model, tokens, context, mask, keys, options)
    np.testing.assert_allclose(other[0], both[0], atol=1e-6)
    assert float(jnp.abs(other[1] - both[1]).max()) > 1e-2


def test_numeric_options_and_weights_do_not_recompile(our_model):
    """Only guidance 1, which skips the unconditional half, needs a program of its own."""
    graph, state = nnx.split(our_model)
    sample_windows = window_sampler(graph)
    assert window_sampler(nnx.graphdef(our_model)) is sample_windows
    before = sample_windows._cache_size()

    def run(state=state, **sampling):
        options = OURS.decoder.sampled(steps=2, **sampling).options()
        return sample_windows((state,), *model_inputs(OURS), KEYS, options)

    guided, same, more = (run(guidance=guidance) for guidance in (2.0, 2.0, 3.0))
    other = run(jax.tree.map(lambda x: 1.01 * x, state), guidance=2.0)
    assert sample_windows._cache_size() == before + 1
    unguided = run(guidance=1.0)
    assert sample_windows._cache_size() == before + 2
    assert unguided.shape == (2, 256, 128)
    np.testing.assert_array_equal(guided, same)
    for different in (unguided, more, other):
        assert float(jnp.abs(different - guided).max()) > 1e-4
    scaled = dataclasses.replace(OURS, decoder=dataclasses.replace(OURS.decoder, std=0.2))
    assert window_sampler(nnx.graphdef(SpectrogramModel(scaled, rngs=nnx.Rngs(0)))) is not sample_windows
