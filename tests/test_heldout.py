import jax
import matplotlib
import numpy as np
import pytest
from inputs import OURS, windows_of

from spectrodiff.audio.mel import unscale_mel
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training import heldout
from spectrodiff.training import state as states
from spectrodiff.vocoder.griffin_lim import GriffinLim

NATS = (4.0 - np.log(1e-5)) / 2


@pytest.fixture(scope="module")
def windows():
    """Three windows of two datasets; the second is shorter, and the third has no context, as it begins a piece."""
    rng = np.random.default_rng(0)
    tokens = windows_of(NoteTokenizer(OURS.tokenizer), 512)
    target, context = (np.tanh(rng.normal(-0.3, 0.4, (3, 256, 128))).astype(np.float32) for _ in range(2))
    frames, before = np.array([[256], [100], [256]]), np.array([[256], [256], [0]])
    masks = {"target_mask": np.arange(256) < frames, "context_mask": np.arange(256) < before}
    return {"tokens": tokens, "target": target, "context": context, **masks, "dataset": np.array([0, 0, 2])}


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
def test_datasets_get_equal_shares_up_to_their_size(sizes, count, expected):
    assert heldout.equal_shares(sizes, count) == expected


def test_padding_of_batches_does_not_change_samples(windows, our_model):
    """Batches are padded to one shape; the windows are sampled as without padding."""
    weights, decoder = states.split(our_model), OURS.decoder.sampled(steps=2, guidance=1.0)
    got = heldout.sample_windows(weights, decoder, windows)
    graph, *states_of = weights
    given = [windows[name] for name in ("tokens", "context", "context_mask")]
    keys = jax.random.split(jax.random.key(0), 16)[:3]
    expected = window_sampler(graph)(states_of, *given, keys, decoder.options())
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert not np.allclose(got[0], got[1], atol=0.1)


def test_over_batches_visits_windows_once_with_a_key_per_batch():
    seen = []

    def number_times_ten(batch, key):
        seen.append(jax.random.key_data(key))
        assert len(batch["tokens"]) == len(batch["number"]) == 16
        return 10.0 * batch["number"]

    numbers = np.arange(40)
    got = heldout.over_batches(number_times_ten, {"tokens": np.zeros((40, 1)), "number": numbers})
    np.testing.assert_array_equal(got, 10.0 * numbers)
    assert len({tuple(key.tolist()) for key in seen}) == 3


def test_stratified_times_are_even_within_their_bands():
    for band, column in enumerate(heldout.stratified_times(40).T):
        for some in (column, column[8:16]):
            gaps = np.diff([band / 4, *np.sort(some), (band + 1) / 4])
            assert gaps.min() >= 0
            assert gaps.max() < 3 * 0.25 / len(some)


def test_figures_are_means_over_frames_and_datasets(windows):
    names = ["first", "absent", "last"]
    sampled = windows["target"].copy()
    sampled[1, :50] += 0.1  # half of its 100 frames
    sampled[1, 100:] = 9.0  # past its end
    sampled[2] -= 0.2
    got = heldout.mel_figures(windows, names, sampled)
    expected = {
        "heldout_mel_l1": NATS * (50 * 0.1 + 256 * 0.2) / (256 + 100 + 256),
        "heldout_mel_l1/first": NATS * 50 * 0.1 / (256 + 100),
        "heldout_mel_l1/last": NATS * 0.2,
    }
    assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    assert got["heldout_roughness/last"] == pytest.approx(1.0, rel=1e-4)  # a constant offset does not change it
    assert got.keys() - expected.keys() == {f"heldout_roughness{of}" for of in ("", "/first", "/last")}
    losses = np.array([1.0, 3.0, 8.0])
    assert heldout.loss_figures(windows, names, losses) == {
        "heldout_loss": 4.0,
        "heldout_loss/first": 2.0,
        "heldout_loss/last": 8.0,
    }
    one = {**windows, "dataset": np.zeros(3, int)}
    assert heldout.loss_figures(one, ["only"], losses) == {"heldout_loss": 4.0}
    assert heldout.mel_figures(one, ["only"], sampled) == {
        name: value for name, value in got.items() if not name.endswith(("/first", "/last"))
    }


def test_roughness_equals_hand_computed_value():
    """In a window of 6 frames half of the bins alternate by 0.3; in one of 4 frames all bins are 0.1 t^2.

    The second differences are 0.6 for half of the bins, at four frames, and 0.2 for all bins, at two frames.
    """
    mels = np.full((2, 6, 128), 0.5)
    mels[0, :, :64] = 0.3 * (np.arange(6) % 2)[:, None]
    mels[1, :4] = 0.1 * np.arange(4)[:, None] ** 2
    mels[1, 4:] = [[9.0], [-9.0]]  # past its end
    mask = np.arange(6) < np.array([[6], [4]])
    assert heldout.roughness(mels, mask) == pytest.approx(NATS * (4 * 0.3 + 2 * 0.2) / 6)
    assert heldout.roughness(mels[:1], mask[:1]) == pytest.approx(NATS * 0.3)
    assert heldout.roughness(mels, np.arange(6) < np.array([[2], [1]])) == 0.0  # too short for second differences
    windows = {"tokens": np.zeros((2, 1)), "target": mels, "target_mask": mask}
    halved = heldout.mel_figures(windows, ["only"], 0.5 * mels - 0.2)
    assert halved["heldout_roughness"] == pytest.approx(0.5)


def test_pick_spreads_windows_evenly():
    windows = {"tokens": np.arange(64)}
    assert heldout.pick(windows, 3)["tokens"].tolist() == [0, 31, 63]
    assert heldout.pick({"tokens": np.arange(2)}, 3)["tokens"].tolist() == [0, 1]


def test_pictures_have_low_frequencies_at_the_bottom():
    low, loud = np.full((10, 128), -1.0, np.float32), np.ones((20, 128), np.float32)
    low[3, 0] = 1.0
    picture = heldout.side_by_side(low, loud)
    assert picture.shape == (128, 10 + 4 + 20, 3)
    black, bright = (matplotlib.colormaps["magma"](x, bytes=True)[:3] for x in (0.0, 1.0))
    expected = np.full_like(picture, 255)
    expected[:, :10], expected[:, 14:] = black, bright
    expected[127, 3] = bright
    np.testing.assert_array_equal(picture, expected)


def test_show_windows_has_true_and_sampled_mels_and_audio(windows):
    two = heldout.pick({name: value[:2] for name, value in windows.items()}, 2)
    sampled = two["target"][:, ::-1].copy()
    sampled[1] = np.nan
    pictures, sounds = heldout.show_windows(two, sampled)
    assert {name: picture.shape for name, picture in pictures.items()} == {
        "heldout_mel/0": (128, 256 + 4 + 256, 3),
        "heldout_mel/1": (128, 100 + 4 + 100, 3),
    }
    vocoder = heldout.GriffinLim()
    np.testing.assert_array_equal(sounds["heldout_audio/1_true"], vocoder(unscale_mel(two["target"][1, :100])))
    np.testing.assert_array_equal(sounds["heldout_audio/0_sampled"], vocoder(unscale_mel(sampled[0])))
    np.testing.assert_allclose(sounds["heldout_audio/1_sampled"], 0.0, atol=1e-3)
    assert len(sounds) == 4


def test_vocoder_errors_give_silence(windows, monkeypatch):
    """A long training run must not end because a model samples an invalid mel."""

    def refuse(self, mel):
        raise InputError("no mel of audio")

    monkeypatch.setattr(GriffinLim, "__call__", refuse)
    one = heldout.pick(windows, 1)
    _, sounds = heldout.show_windows(one, one["target"])
    np.testing.assert_array_equal(sounds["heldout_audio/0_sampled"], np.zeros(256 * 320, np.float32))
