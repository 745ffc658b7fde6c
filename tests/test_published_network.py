"""Our network is compared with the published one, transcribed to numpy, with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import PAPER, jitted
from network_oracle import PublishedNetwork

from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.vocabulary import EOS
from spectrodiff.pretrained.native import flatten

# Heads narrower than the network and different depths of the stacks, so that mix-ups fail on shapes.
CFG = dataclasses.replace(
    PAPER,
    model=dataclasses.replace(
        PAPER.model, heads=3, head_dim=8, mlp_width=48, note_layers=2, context_layers=1, decoder_layers=3
    ),
)
TOKENS, FRAMES = CFG.model.max_tokens, 256
CASES = [  # real tokens, real frames of context, noise time
    *[(tokens, context, 0.5) for tokens in (0, 1, 41, TOKENS) for context in (0, 1, 100, FRAMES)],
    *[(41, 100, time) for time in (0.0, 0.01, 0.25, 0.9, 1.0)],
]


def random_model(config):
    """A model with all parameters random, as norm scales of one would hide a missing scale."""
    model = SpectrogramModel(config, rngs=nnx.Rngs(0))
    for i, (path, leaf) in enumerate(nnx.to_flat_state(nnx.state(model))):
        if path[-1] == "scale":
            leaf[...] = jax.random.uniform(jax.random.key(i), leaf.shape, minval=0.5, maxval=1.5)
    return model


def published_of(model):
    return PublishedNetwork(flatten(nnx.state(model, nnx.Any(nnx.Param, Buffer))), CFG.model.heads)


@pytest.fixture(scope="module")
def model():
    return random_model(CFG)


@pytest.fixture(scope="module")
def inputs():
    """A batch of all cases; padded frames are not zero, so that attending to them would change the output."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 1388, (len(CASES), TOKENS)).astype(np.int32)
    for row, (real, _, _) in zip(tokens, CASES, strict=True):
        row[max(real - 1, 0) :] = EOS
        row[real:] = 0
    context = rng.uniform(-1, 1, (len(CASES), FRAMES, 128)).astype(np.float32)
    mask = np.arange(FRAMES) < np.array([[real] for _, real, _ in CASES])
    z = rng.normal(size=(len(CASES), FRAMES, 128)).astype(np.float32)
    return tokens, context, mask, z, np.array([time for _, _, time in CASES], np.float32)


@pytest.fixture(scope="module")
def ours(model, inputs):
    @jitted
    def run(model, tokens, context, mask, z, time):
        memory = model.encode(tokens, context, mask, FRAMES).encoded
        return memory, SpectrogramModel.__call__(model, tokens, context, mask, z, logsnr_at(time))

    return tuple(map(np.asarray, run(model, *map(jnp.asarray, inputs))))


@pytest.fixture(scope="module")
def published(model):
    return published_of(model)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diffusion_network_matches_the_published_one(case, inputs, ours, published):
    i = CASES.index(case)
    tokens, context, _, z, time = (np.asarray(array[i], np.float64) for array in inputs)
    notes = published.note_memory(tokens[: case[0]].astype(int))
    frames = published.context_memory(context[: case[1]])
    np.testing.assert_allclose(ours[0][i, : case[0]], notes, atol=1e-5)
    np.testing.assert_allclose(ours[0][i, TOKENS : TOKENS + case[1]], frames, atol=1e-5)
    eps = published.eps(z, time, np.concatenate([notes, frames]))
    # The fastest sinusoid of the noise level spans 2e4 radians, which float32 resolves to 1e-3.
    np.testing.assert_allclose(ours[1][i], eps, atol=np.abs(eps).max() * (1e-5 + 1e-3 * time))


def test_autoregressive_network_matches_the_published_one(inputs):
    """It has no context; notes attend to the padding after them, the decoder does not."""
    network = dataclasses.replace(CFG.model, with_context=False, context_layers=0, mask_padding=False)
    model = random_model(dataclasses.replace(CFG, model=network, decoder=AutoregressiveConfig()))
    tokens, context, mask, frames, _ = (array[: len(CASES) : 4] for array in inputs)
    run = jitted(SpectrogramModel.__call__)
    ours, published = run(model, *map(jnp.asarray, (tokens, context, mask, frames))), published_of(model)
    real = [case[0] for case in CASES[::4]]
    assert {0, 1, 41, TOKENS} <= {*real}
    for i, count in enumerate(real):
        memory = published.note_memory(tokens[i])[:count]
        expected = published.next_frames(np.float64(frames[i]), memory)
        np.testing.assert_allclose(ours[i], expected, atol=2e-5 * np.abs(expected).max())
