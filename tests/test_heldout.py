import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, windows_of

from spectrodiff.audio.mel import unscale_mel
from spectrodiff.diffusion.samplers import dpmpp
from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.errors import InputError
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.sampling import window_sampler
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training import heldout
from spectrodiff.training import state as states
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.vocoder.griffin_lim import GriffinLim

FRAMES = ("target", "target_mask")


@pytest.fixture(scope="module")
def windows():
    """Three, the second cut short and the last one first in its piece, of two datasets."""
    rng = np.random.default_rng(0)
    tokens = windows_of(NoteTokenizer(OURS.tokenizer), 512)
    target, context = (np.tanh(rng.normal(-0.3, 0.4, (3, 256, 128))).astype(np.float32) for _ in range(2))
    frames, before = np.array([[256], [100], [256]]), np.array([[256], [256], [0]])
    masks = {"target_mask": np.arange(256) < frames, "context_mask": np.arange(256) < before}
    return {"tokens": tokens, "target": target, "context": context, **masks, "dataset": np.array([0, 0, 2])}


@pytest.fixture(scope="module")
def parts(our_model):
    return states.split(our_model)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([100], 64, [64]),
        ([100], 640, [100]),
        ([100, 100, 100], 64, [21, 21, 22]),
        ([100, 5, 100], 65, [30, 5, 30]),
        ([5, 2, 0], 100, [5, 2, 0]),
        ([9, 9, 9], 1, [1, 1, 1]),
    ],
)
def test_every_dataset_has_its_share(sizes, count, expected):
    assert heldout.equal_shares(sizes, count) == expected


def test_batches_are_filled_up_without_a_trace(windows, parts):
    """One shape for however many windows, and they are sampled as they would be alone."""
    graph, *weights = parts
    got = heldout.sample_windows(graph, *weights, OURS.diffusion, windows, steps=2)
    given = (windows[name] for name in ("tokens", "context", "context_mask"))
    sample = window_sampler(graph, OURS.diffusion)
    expected = sample(tuple(weights), *given, jax.random.key(0), step=dpmpp, steps=2, guidance=1.0)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.allclose(got[0], got[1], atol=0.1)


def test_times_lie_in_their_bands_evenly():
    windows = {"tokens": np.zeros((40, 1)), "number": np.arange(40)}
    seen = heldout.band_losses(lambda batch, key: batch["time"] + 10 * batch["number"][:, None], windows)
    times = seen - 10 * np.arange(40)[:, None]
    for band, column in enumerate(times.T):
        for some in (column, column[8:16]):
            gaps = np.diff([band / 4, *np.sort(some), (band + 1) / 4])
            assert gaps.min() >= 0
            assert gaps.max() < 3 * 0.25 / len(some)


@pytest.fixture(scope="module")
def v_task(windows):
    """Of a network that predicts v, whose loss depends on time the most, and its windows."""
    config = dataclasses.replace(PAPER, diffusion=DiffusionConfig(prediction="v", mean=-0.2, std=0.5))
    return SpectrogramTask(config=config), {**windows, "tokens": windows["tokens"][:, :128]}


def losses(task, windows, spoil=lambda model: None):
    model = task.build(nnx.Rngs(0))
    spoil(model)
    graph, *weights = states.split(model)
    return heldout.band_losses(lambda batch, key: task._band_losses(graph, *weights, batch, key), windows)


def test_the_loss_of_what_answers_zero(v_task):
    """Mean square of v = alpha eps - sigma x0, times its weight: known but for the noise, 0.8 % of it with as many."""
    task, windows = v_task

    def silence(model):
        model.decoder.out.kernel[...] = jnp.zeros_like(model.decoder.out.kernel[...])

    golden = (np.sqrt(5) - 1) / 2
    time = (jnp.arange(4) + jnp.arange(3)[:, None] * golden % 1) / 4
    snr = np.exp(np.asarray(logsnr_at(time)))
    square = [np.square((x0[mask] + 0.2) / 0.5).mean() for x0, mask in zip(*map(windows.get, FRAMES), strict=True)]
    expected = np.minimum(snr, 5) / (snr + 1) * (snr + np.array(square)[:, None]) / (snr + 1)
    np.testing.assert_allclose(losses(task, windows, silence), expected, rtol=0.04)


def test_the_loss_is_the_same_whatever_training_drops(v_task):
    task, windows = v_task
    config = dataclasses.replace(task.config, model=dataclasses.replace(PAPER.model, dropout=0.9))
    spoilt = dataclasses.replace(task, config=config, condition_drop=1.0, time_power=0.1)
    expected = losses(task, windows)
    np.testing.assert_array_equal(losses(spoilt, windows), expected)
    assert losses(task, {**windows, "tokens": windows["tokens"][::-1]}) != pytest.approx(expected)  # it hears notes


def test_figures_are_means_over_what_they_are_named_for(windows):
    names = ["first", "absent", "last"]
    sampled = windows["target"].copy()
    sampled[1, :50] += 0.1  # half of its 100 frames
    sampled[1, 100:] = 9.0  # past its end
    sampled[2] -= 0.2
    losses = np.arange(12.0).reshape(3, 4)
    got = heldout.score(windows, names, sampled, losses)
    nats = (4.0 - np.log(1e-5)) / 2
    expected = {
        "heldout_mel_l1": nats * (50 * 0.1 + 256 * 0.2) / (256 + 100 + 256),
        "heldout_mel_l1/first": nats * 50 * 0.1 / (256 + 100),
        "heldout_mel_l1/last": nats * 0.2,
        "heldout_loss": 5.5,
        "heldout_loss/first": 3.5,
        "heldout_loss/last": 9.5,
        **{f"heldout_loss_band/{band}": 4.0 + band for band in range(4)},
    }
    assert got == pytest.approx(expected, rel=1e-4)
    alone = heldout.score({**windows, "dataset": np.zeros(3, int)}, ["only"], sampled, losses)
    assert alone == {name: value for name, value in got.items() if not name.endswith(("/first", "/last"))}


def test_what_is_picked_is_spread():
    windows = {"tokens": np.arange(64)}
    assert heldout.pick(windows, 3)["tokens"].tolist() == [0, 31, 63]
    assert heldout.pick({"tokens": np.arange(2)}, 3)["tokens"].tolist() == [0, 1]


def test_a_picture_has_low_frequencies_at_the_bottom():
    low, loud = np.full((10, 128), -1.0, np.float32), np.ones((20, 128), np.float32)
    low[3, 0] = 1.0
    picture = heldout.side_by_side(low, loud)
    assert picture.shape == (128, 10 + 4 + 20, 3)
    black, bright = (matplotlib.colormaps["magma"](x, bytes=True)[:3] for x in (0.0, 1.0))
    expected = np.full_like(picture, 255)
    expected[:, :10], expected[:, 14:] = black, bright
    expected[127, 3] = bright
    np.testing.assert_array_equal(picture, expected)


def test_windows_are_shown_as_they_are_beside_as_they_are_sampled(windows):
    two = heldout.pick({name: value[:2] for name, value in windows.items()}, 2)
    sampled = two["target"][:, ::-1].copy()
    sampled[1] = np.nan
    pictures, sounds = heldout.show_windows(two, sampled)
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "heldout_mel/0": (128, 256 + 4 + 256, 3),
        "heldout_mel/1": (128, 100 + 4 + 100, 3),
    }
    vocoder = GriffinLim()
    np.testing.assert_array_equal(sounds["heldout_audio/1_true"], vocoder(unscale_mel(two["target"][1, :100])))
    np.testing.assert_array_equal(sounds["heldout_audio/0_sampled"], vocoder(unscale_mel(sampled[0])))
    np.testing.assert_allclose(sounds["heldout_audio/1_sampled"], 0.0, atol=1e-3)
    assert len(sounds) == 4


def test_what_the_vocoder_refuses_is_silent(windows, monkeypatch):
    """A run of days does not end because a model samples nonsense on its way."""

    def refuse(self, mel):
        raise InputError("no mel of audio")

    monkeypatch.setattr(GriffinLim, "__call__", refuse)
    one = heldout.pick(windows, 1)
    _, sounds = heldout.show_windows(one, one["target"])
    np.testing.assert_array_equal(sounds["heldout_audio/0_sampled"], np.zeros(256 * 320, np.float32))
