"""The autoregressive decoder: causality, sampling with a KV cache against one parallel pass, and both losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from flax import nnx
from inputs import OURS, PAPER, conditioning, jitted, windows_of

from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig, AutoregressiveDecoder, Mixture
from spectrodiff.models.decoder import Decoder
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer

T, MEAN, STD = 12, -0.3, 0.375
SPACE = {"mean": MEAN, "std": STD}
CUT = (-1.0 - MEAN) / STD, (1.0 - MEAN) / STD  # scaled log-mel range [-1, 1], normalized as the decoder does
KEYS = jax.random.split(jax.random.key(0), 5)
FRAMES = jax.random.normal(KEYS[0], (2, T, 128))
MASK = jnp.arange(24) < jnp.array([[9], [24]])
SKETCH = 0.5 * jax.random.normal(KEYS[2], (2, T, 128))
NOTES = conditioning(jax.random.normal(KEYS[1], (2, 24, 32)), MASK)
SKETCHED = NOTES._replace(sketch=SKETCH)
ROWS = jax.random.split(KEYS[3], 2)
MODEL = dataclasses.replace(PAPER.model, decoder_layers=2, with_context=False, context_layers=0, mask_padding=False)
ROLL = dataclasses.replace(MODEL, compact_notes=True, note_roll=True)


def build(model=MODEL, **options):
    return AutoregressiveDecoder(AutoregressiveConfig(**SPACE, **options), model, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def plain():
    return build()


@pytest.fixture(scope="module")
def sketched():
    return build(ROLL)


@pytest.fixture(scope="module")
def mixed():
    return build(components=3)


CASES = {"plain": NOTES, "sketched": SKETCHED}


@pytest.fixture(params=CASES)
def case(request):
    """A decoder without mixture output, and conditioning for it."""
    return request.getfixturevalue(request.param), CASES[request.param]


@jitted
def decode(decoder, given, frames):
    return decoder(decoder.cache(given), frames)


@jitted
def sample(decoder, given, keys, options):
    return decoder.sample(given, T, keys, options)


def options(decoder, **sampling):
    return decoder.config.sampled(**sampling).options()


def normalized(mel):
    """Scaled log-mel normalized to the decoder's mean and deviation."""
    return (mel - MEAN) / STD


def test_decoder_protocol_and_output_shapes(plain, mixed):
    assert isinstance(plain, Decoder)
    assert decode(plain, NOTES, FRAMES).shape == FRAMES.shape
    assert decode(mixed, NOTES, FRAMES).shape == (2, T, 3 * (1 + 2 * 128))


# ---- causality and masks


def test_outputs_depend_on_earlier_frames_alone(case):
    """Checked by the Jacobian. The sketch, which is known in advance, is visible up to the frame of the output."""
    decoder, given = case
    graph, state = nnx.split(decoder)
    weights = jax.random.normal(KEYS[4], (128,))

    @jax.jit
    def jacobian(frames, memory, sketch):
        def outputs(frames, memory, sketch):
            return decode(nnx.merge(graph, state), given._replace(encoded=memory, sketch=sketch), frames)[0] @ weights

        return jax.jacrev(outputs, (0, 1, 2))(frames, memory, sketch)

    of_frames, of_memory, of_sketch = jacobian(FRAMES, given.encoded, given.sketch)
    seen = np.abs(of_frames).sum(-1) > 0  # [output frame, batch row, input frame]
    np.testing.assert_array_equal(seen[:, 0], np.tri(T, k=-1, dtype=bool))
    assert not seen[:, 1].any()
    notes = np.abs(of_memory).sum(-1) > 0
    np.testing.assert_array_equal(notes[:, 0], np.broadcast_to(MASK[0], (T, 24)))
    assert not notes[:, 1].any()
    if of_sketch is not None:
        np.testing.assert_array_equal((np.abs(of_sketch).sum(-1) > 0)[:, 0], np.tri(T, dtype=bool))


def test_masked_memory_has_no_effect(plain):
    wild = NOTES._replace(encoded=jnp.where(MASK[..., None], NOTES.encoded, 100.0))
    np.testing.assert_array_equal(decode(plain, NOTES, FRAMES), decode(plain, wild, FRAMES))
    mels = (sample(plain, given, ROWS, options(plain)) for given in (NOTES, wild))
    np.testing.assert_array_equal(*mels)


# ---- sampling


def test_cached_sampling_equals_one_parallel_pass(case):
    """Decoding the sampled frames in parallel gives, added to the sketch and clipped, the same frames."""
    decoder, given = case
    mel = sample(decoder, given, ROWS, options(decoder))
    assert mel.shape == (2, T, 128)
    output = given.prior + decode(decoder, given, normalized(mel))
    np.testing.assert_allclose(normalized(mel), np.clip(output, *CUT), atol=1e-4)
    assert 0.001 < np.mean(np.abs(mel) > 1.0 - 1e-6) < 0.5  # clipped values are among those that later frames see
    assert float(jnp.abs(jnp.diff(mel, axis=1)).mean(-1).min()) > 1e-3


def test_sampling_is_deterministic_without_dither_or_mixture(plain):
    first, second = (sample(plain, NOTES, jax.random.split(key, 2), options(plain)) for key in KEYS[:2])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", ["plain", "mixed"])
def test_samples_do_not_depend_on_the_rest_of_the_batch(name, request):
    decoder, sampling = request.getfixturevalue(name), {"dither": 0.3}
    both = sample(decoder, NOTES, ROWS, options(decoder, **sampling))
    for row in range(2):
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], NOTES)
        mel = sample(decoder, alone, ROWS[row : row + 1], options(decoder, **sampling))
        np.testing.assert_allclose(mel[0], both[row], atol=1e-4)
    swapped = sample(decoder, jax.tree.map(lambda x: x[::-1], NOTES), ROWS[::-1], options(decoder, **sampling))
    np.testing.assert_allclose(swapped, both[::-1], atol=1e-4)


def test_dither_adds_gaussian_noise_that_later_frames_see(plain):
    first, again, other = (
        sample(plain, NOTES, jax.random.split(key, 2), options(plain, dither=0.2))
        for key in (KEYS[0], KEYS[0], KEYS[1])
    )
    np.testing.assert_array_equal(first, again)
    for mel in (first, other):
        frames = np.asarray(normalized(mel))
        noise = frames - np.asarray(decode(plain, NOTES, frames))
        inside = (
            (frames > CUT[0] + 1e-4) & (frames < CUT[1] - 1e-4) & (np.abs(frames - noise) < 1.0)
        )  # not clipped, nor close to it
        assert inside.sum() > 1000
        assert scipy.stats.kstest(noise[inside] / 0.2, "norm").statistic < 1.63 / np.sqrt(inside.sum())
    assert float(jnp.abs(first - other).mean()) > 0.01


def test_sampled_mels_are_clipped_to_their_range(plain):
    loud = nnx.clone(plain)
    loud.out.kernel[...] = 100.0 * loud.out.kernel[...]
    mel = sample(loud, NOTES, ROWS, options(loud))
    assert float(mel.min()) == pytest.approx(-1.0, abs=1e-6)
    assert float(mel.max()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("components", [0, 2])
def test_outputs_are_added_to_the_sketch(components):
    """With a zero output layer, frames equal the sketch, plus the noise of a mixture if there is one."""
    decoder = build(ROLL, components=components)
    decoder.out.kernel[...] = jnp.zeros_like(decoder.out.kernel[...])
    noise = normalized(sample(decoder, SKETCHED, ROWS, options(decoder))) - SKETCH
    losses, metrics = decoder.loss(SKETCHED, MEAN + STD * FRAMES, jnp.ones((2, T), bool), KEYS[0])
    if components:
        assert float(noise.std()) == pytest.approx(0.1 + 0.9 / 2, rel=0.05)
        error = -scipy.stats.norm(SKETCH, 0.55).logpdf(FRAMES)
    else:
        np.testing.assert_allclose(noise, np.zeros_like(noise), atol=1e-5)
        error = np.square(SKETCH - FRAMES)
    np.testing.assert_allclose(losses, error.mean((1, 2)), rtol=1e-5)
    assert metrics == {}


# ---- the mixture


@pytest.mark.parametrize("k", [1, 5])
def test_mixture_log_likelihood_equals_scipy(k):
    rng = np.random.default_rng(k)
    logits, mean = 3.0 * rng.normal(size=(4, 7, k)), rng.normal(size=(4, 7, k, 128))
    std, frames = rng.uniform(0.1, 1.0, (4, 7, k, 128)), rng.normal(size=(4, 7, 128))
    each = scipy.stats.norm(mean, std).logpdf(frames[..., None, :]).sum(-1)
    expected = scipy.special.logsumexp(scipy.special.log_softmax(logits, -1) + each, -1)
    mixture = Mixture(*(jnp.array(x, jnp.float32) for x in (logits, mean, std)))
    np.testing.assert_allclose(mixture.log_likelihood(jnp.array(frames, jnp.float32)), expected, rtol=1e-4)


def test_mixture_standard_deviations_are_bounded(mixed):
    """They are 0.1 + 0.9 sigmoid(output), as in the released code of Hawthorne et al. (2022)."""
    output = 30.0 * jax.random.normal(KEYS[0], (2, T, 3 * 257))
    mixture = mixed._mixture(output, 0.0)
    assert mixture.logits.shape == (2, T, 3)
    assert mixture.mean.shape == mixture.std.shape == (2, T, 3, 128)
    assert float(mixture.std.min()) == pytest.approx(0.1, abs=1e-3)
    assert float(mixture.std.max()) == pytest.approx(1.0, abs=1e-3)
    raw = output[..., 3 + 3 * 128 :].reshape(2, T, 3, 128)
    np.testing.assert_allclose(mixture.std, 0.1 + 0.9 * scipy.special.expit(np.float64(raw)), atol=1e-5)
    prior = mixed._mixture(output, SKETCH)
    np.testing.assert_allclose(prior.mean - mixture.mean, np.repeat(SKETCH[:, :, None], 3, 2), atol=1e-4)


def test_frames_follow_the_mixture_distribution(mixed):
    """Two distant components and one of negligible weight; all bins of a frame come from the same component."""
    logits = np.log([0.3, 0.7, 1e-12])
    mean = np.stack([np.full(128, -1.5), np.linspace(1.0, 2.0, 128), np.full(128, 50.0)])
    raw = np.stack([np.full(128, -1.0), np.linspace(-3.0, 3.0, 128), np.zeros(128)])
    output = jnp.array(np.concatenate([logits, mean.ravel(), raw.ravel()]), jnp.float32)
    keys = jax.random.split(KEYS[0], 4000)
    drawn = np.asarray(jax.vmap(lambda key: mixed._draw(output, None, key, options(mixed)))(keys), np.float64)
    which = (drawn.mean(1) > 0).astype(int)
    assert which.mean() == pytest.approx(0.7, abs=0.03)
    std = 0.1 + 0.9 * scipy.special.expit(raw)
    for k in (0, 1):
        deviation = (drawn[which == k] - mean[k]) / std[k]
        assert scipy.stats.kstest(deviation[:200].ravel(), "norm").statistic < 1.63 / np.sqrt(200 * 128)
        assert np.abs(np.corrcoef(deviation[:, :8].T) - np.eye(8)).max() < 0.15


def test_mixture_outputs_depend_on_sampled_frames(mixed):
    """Sampled frames have the likelihood that samples should have, and a much higher one than shifted frames."""
    mel = sample(mixed, NOTES, ROWS, options(mixed))
    frames = normalized(mel)
    mixture = mixed._mixture(decode(mixed, NOTES, frames), 0.0)
    own, others = (np.asarray(mixture.log_likelihood(x)) for x in (frames, jnp.roll(frames, 1, 1)))
    # The expected log-likelihood of a sample from a diagonal Gaussian is its negative entropy.
    entropy = (np.log(np.asarray(mixture.std)) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1).mean(-1)
    assert own.mean() == pytest.approx(-entropy.mean(), rel=0.1)
    assert own.mean() - others.mean() > 10.0
    assert not np.allclose(mel, sample(mixed, NOTES, jax.random.split(KEYS[4], 2), options(mixed)), atol=0.01)


# ---- the loss

FRAME_MASK = jnp.arange(T) < jnp.array([[T], [5]])


@jitted
def losses_of(decoder, given, target, frame_mask):
    return decoder.loss(given, target, frame_mask, KEYS[0])[0]


def test_loss_is_mean_squared_error_over_unmasked_frames(case):
    decoder, given = case
    output = given.prior + decode(decoder, given, FRAMES)
    error = np.square(np.asarray(output - FRAMES))
    expected = [error[0].mean(), error[1, :5].mean()]
    losses = losses_of(decoder, given, MEAN + STD * FRAMES, FRAME_MASK)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    wild = jnp.where(FRAME_MASK[..., None], FRAMES, 1e3)
    np.testing.assert_allclose(losses_of(decoder, given, MEAN + STD * wild, FRAME_MASK), expected, rtol=1e-4)
    nothing = losses_of(decoder, given, MEAN + STD * FRAMES, FRAME_MASK & jnp.array([[True], [False]]))
    assert float(nothing[1]) == 0.0


def test_mixture_loss_is_negative_log_likelihood_per_bin(mixed):
    mixture = mixed._mixture(decode(mixed, NOTES, FRAMES), 0.0)
    likelihood = np.asarray(mixture.log_likelihood(FRAMES)) / 128
    losses = losses_of(mixed, NOTES, MEAN + STD * FRAMES, FRAME_MASK)
    np.testing.assert_allclose(losses, [-likelihood[0].mean(), -likelihood[1, :5].mean()], rtol=1e-4)


def test_dropout_is_active_only_with_rngs(plain):
    target, mask = MEAN + STD * FRAMES, jnp.ones((2, T), bool)
    kept, again = (plain.loss(NOTES, target, mask, key)[0] for key in KEYS[:2])
    np.testing.assert_array_equal(kept, again)
    dropped, other = (plain.loss(NOTES, target, mask, KEYS[0], nnx.Rngs(dropout=i))[0] for i in (0, 1))
    assert float(jnp.abs(dropped - kept).min()) > 1e-4
    assert float(jnp.abs(dropped - other).min()) > 1e-4


# ---- the whole model

CONTEXT = jax.random.uniform(KEYS[4], (2, 16, 128), minval=-1.0)
CONTEXT_MASK = jnp.arange(16) < jnp.array([[16], [5]])
WHOLE = {
    "paper": (dataclasses.replace(PAPER, model=MODEL, decoder=AutoregressiveConfig(components=2)), False),
    "ours": (dataclasses.replace(OURS, decoder=AutoregressiveConfig(**SPACE)), True),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole_model(request):
    """A complete model, note tokens, and whether it has a context encoder."""
    config, has_context = WHOLE[request.param]
    tokens = jnp.asarray(windows_of(NoteTokenizer(config.tokenizer), 128, 2))
    return SpectrogramModel(config, rngs=nnx.Rngs(0)), tokens, has_context


def test_whole_model_depends_on_notes_and_context(whole_model):
    model, tokens, has_context = whole_model
    call = jitted(SpectrogramModel.__call__)
    output = call(model, tokens, CONTEXT, CONTEXT_MASK, FRAMES)
    assert output.shape == (2, T, 128 if has_context else 2 * 257)
    with_other = call(model, tokens, CONTEXT + 0.5, CONTEXT_MASK, FRAMES)
    assert (float(jnp.abs(with_other - output).max()) > 1e-3) == has_context
    assert float(jnp.abs(call(model, tokens[::-1], CONTEXT, CONTEXT_MASK, FRAMES) - output).max()) > 1e-3


def test_loss_gradients_reach_every_parameter(whole_model):
    model, tokens, _ = whole_model
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        model = nnx.merge(graph, params, rest)
        given = model.encode(tokens, CONTEXT, CONTEXT_MASK, T)
        return model.decoder.loss(given, 0.3 * FRAMES, jnp.ones((2, T), bool), KEYS[0])[0].mean()

    gradients = nnx.to_flat_state(jax.jit(jax.grad(loss))(params))
    dead = [".".join(map(str, path)) for path, leaf in gradients if not bool(jnp.abs(leaf[...]).max() > 0)]
    assert dead == []


@pytest.mark.parametrize("change", [{"remat": True}, {"dtype": "bfloat16"}], ids=str)
def test_remat_and_bfloat16_change_only_rounding(plain, change):
    other = build(dataclasses.replace(MODEL, **change))
    expected, found = (sample(decoder, NOTES, ROWS, options(decoder)) for decoder in (plain, other))
    assert found.dtype == jnp.float32
    outputs = (decode(decoder, NOTES, FRAMES) for decoder in (plain, other))
    rounding = 0.02 if "dtype" in change else 1e-5
    a, b = (np.ravel(x) for x in outputs)
    assert np.linalg.norm(a - b) <= rounding * np.linalg.norm(a)
    assert float(jnp.abs(found - expected).mean()) <= rounding
