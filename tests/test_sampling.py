import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, jitted, windows_of

from spectrodiff.diffusion.objective import OBJECTIVES
from spectrodiff.diffusion.samplers import ddim, ddpm, dpmpp
from spectrodiff.diffusion.schedule import NoiseLevel
from spectrodiff.models.sampling import sample_mel, window_sampler
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENS, FRAMES, KEY = 128, 24, jax.random.key(3)


def given(config):
    """Tokens, context and its mask of two windows."""
    context = jax.random.uniform(jax.random.key(0), (2, 256, 128), minval=-1.0)
    mask = jnp.arange(256) < jnp.array([[256], [0]])
    return jnp.asarray(windows_of(NoteTokenizer(config.tokenizer), TOKENS, 2)), context, mask


def sampled(model, config, key=KEY, **options):
    """Windows short enough to be quick."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state, key):
        model = nnx.merge(graph, state)
        return sample_mel(model, config.diffusion, model.encode(*given(config), FRAMES), FRAMES, key, **options)

    return run(state, key)


V_NETWORK = dataclasses.replace(PAPER, diffusion=dataclasses.replace(PAPER.diffusion, prediction="v"))


@pytest.fixture(scope="module", params=[V_NETWORK, OURS], ids=["paper", "ours"])
def looked_at_once(request):
    """A config, its model, and what one look at pure noise makes of it with and without notes and context.

    The paper's network is taken to say v: an eps divided by alpha = 4.5e-5 would tell little more than its sign.
    """
    config = request.param
    model = request.getfixturevalue("our_model" if config is OURS else "paper_model")
    noise, logsnr = jax.random.normal(jax.random.split(KEY)[0], (2, FRAMES, 128)), jnp.array(-20.0)

    @jitted
    def estimates(model, tokens, context, mask):
        kept = model.encode(tokens, context, mask, FRAMES)
        outputs = (
            model.decoder(noise, logsnr, model.cache(conditioning))
            for conditioning in (kept, kept.keep(jnp.zeros(2, bool)))
        )
        return [OBJECTIVES[config.diffusion.prediction].to_x0(output, noise, NoiseLevel(logsnr)) for output in outputs]

    return config, model, estimates(model, *given(config))


@pytest.mark.parametrize("guidance", [None, 3.0])
def test_one_step_by_hand(looked_at_once, guidance):
    """Noise from the key, one look at the lowest log-SNR, guided, clipped to what a mel may be, and scaled back."""
    config, model, (with_notes, without) = looked_at_once
    x0 = with_notes if guidance is None else guidance * with_notes + (1 - guidance) * without
    expected = np.clip(config.diffusion.mean + config.diffusion.std * x0, -1.0, 1.0)
    assert np.mean(np.abs(expected) < 1) > 0.2
    ours = sampled(model, config, step=ddim, steps=1, guidance=guidance)
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_samples_lie_in_the_range_of_a_mel_and_differ_by_key(our_model):
    first, second = (sampled(our_model, OURS, jax.random.key(i), step=ddpm, steps=3, guidance=2.0) for i in (0, 1))
    assert float(jnp.abs(first).max()) <= 1.0 + 1e-6
    assert not np.allclose(first, second, atol=1e-3)


def test_a_window_sampler_is_compiled_once_for_all_weights_of_guidance_but_one(our_model):
    graph, state = nnx.split(our_model)
    sample_window = window_sampler(graph, OURS.diffusion)
    assert window_sampler(graph, OURS.diffusion) is sample_window
    arguments = ((state,), *given(OURS), KEY)
    unguided, guided, same = (
        sample_window(*arguments, step=dpmpp, steps=2, guidance=guidance) for guidance in (1.0, 2.0, 2.0)
    )
    assert unguided.shape == (2, 256, 128)
    np.testing.assert_array_equal(guided, same)
    assert float(jnp.abs(guided - unguided).max()) > 1e-4
    scaled = dataclasses.replace(OURS.diffusion, std=0.2)
    assert window_sampler(graph, scaled) is not sample_window
