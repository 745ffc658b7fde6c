import dataclasses

import numpy as np
import pytest
from flax import nnx
from inputs import OURS, make_recording, write_dataset

from spectrodiff.config import TokenizerConfig
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.windows import cut_window
from spectrodiff.errors import InputError
from spectrodiff.training import state as states
from spectrodiff.training.spectrogram import SpectrogramTask


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets that validate, with 2 windows in `first` and 2 + 3 in `second`."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "first", {"validation": [make_recording(0)]})
    write_dataset(folder, "second", {"validation": [make_recording(1), make_recording(2, seconds=11.0)]})
    return folder


@pytest.fixture(scope="module")
def task(data_dir):
    return SpectrogramTask(Mixture(str(data_dir), ("first", "second")), OURS, heldout_windows=100)


def test_heldout_windows_are_all_there_are_or_as_many_of_each_dataset(task, data_dir):
    expected = []
    for place, name in enumerate(("first", "second")):
        for piece in map(open_piece, open_dataset(data_dir, name)["validation"]):
            timeline = task.tokenizer.timeline(piece.notes)
            for start in range(0, piece.frames, 256):
                window = cut_window(piece, timeline, start, task.tokenizer, 2048, 1024)
                expected.append({**window, "dataset": place})
    assert len(expected) == 7
    few = dataclasses.replace(task, heldout_windows=3).heldout
    for got, windows in ((task.heldout, expected), (few, [expected[i] for i in (0, 2, 6)])):
        assert got["tokens"].shape == (len(windows), 512)  # of the 2048 that there may be, as many as are needed
        np.testing.assert_array_equal(got["tokens"], [window["tokens"][:512] for window in windows])
        for key in ("target", "target_mask", "context", "context_mask", "dataset"):
            np.testing.assert_array_equal(got[key], [window[key] for window in windows])


def test_of_one_dataset_they_are_spread_over_it(task, data_dir):
    """One in two of five: figures that were measured before there were several datasets stay what they are."""
    alone = dataclasses.replace(task, mixture=Mixture(str(data_dir), "second"))
    all_of_it = alone.heldout["target"]
    few = dataclasses.replace(alone, heldout_windows=3).heldout
    np.testing.assert_array_equal(few["target"], all_of_it[::2])


def test_figures_and_what_is_shown(task):
    parts = states.split(task.build(nnx.Rngs(0)))
    small = dataclasses.replace(task, heldout_windows=3, heldout_steps=2)
    figures = small.evaluate(*parts)
    assert list(figures) == [
        *("heldout_mel_l1", "heldout_mel_l1/first", "heldout_mel_l1/second"),
        *("heldout_loss", "heldout_loss/first", "heldout_loss/second"),
        *(f"heldout_loss_band/{band}" for band in range(4)),
    ]
    assert all(np.isfinite(value) and value > 0 for value in figures.values())
    assert figures["heldout_loss"] == pytest.approx(
        np.mean([figures[f"heldout_loss_band/{band}"] for band in range(4)])
    )
    pictures, sounds = small.show(*parts)
    frames = small.heldout["target_mask"].sum(1)
    assert [pictures[f"heldout_mel/{i}"].shape for i in range(3)] == [(128, 2 * count + 4, 3) for count in frames]
    for kind in ("true", "sampled"):
        assert [len(sounds[f"heldout_audio/{i}_{kind}"]) for i in range(3)] == [320 * count for count in frames]


def test_windows_of_too_many_tokens_are_left_out(task):
    config = dataclasses.replace(OURS, tokenizer=TokenizerConfig(velocity_bins=32, max_tokens=2))
    tight = dataclasses.replace(task, config=config)
    with pytest.raises(InputError, match="every held-out window of first, second has over 2 tokens"):
        _ = tight.heldout


def test_no_split_to_hold_out(task):
    with pytest.raises(InputError, match="no records in a 'test' split; it holds validation"):
        _ = dataclasses.replace(task, heldout_split="test").heldout
