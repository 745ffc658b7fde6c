import dataclasses

import numpy as np
import pytest
from inputs import OURS, make_recording, write_dataset

from spectrodiff.config import TokenizerConfig
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.windows import cut_window
from spectrodiff.errors import InputError
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


def test_heldout_windows_are_all_there_are_or_spread_over_them(task, data_dir):
    expected = []
    for name in ("first", "second"):
        for piece in map(open_piece, open_dataset(data_dir, name)["validation"]):
            timeline = task.tokenizer.timeline(piece.notes)
            for start in range(0, piece.frames, 256):
                expected.append(cut_window(piece, timeline, start, task.tokenizer, 2048, 1024))
    assert len(expected) == 7
    few = dataclasses.replace(task, heldout_windows=3).heldout
    for got, windows in ((task.heldout, expected), (few, expected[::3])):
        assert got["tokens"].shape == (len(windows), 512)  # of the 2048 that there may be, as many as are needed
        np.testing.assert_array_equal(got["tokens"], [window["tokens"][:512] for window in windows])
        for key in ("target", "target_mask", "context", "context_mask"):
            np.testing.assert_array_equal(got[key], [window[key] for window in windows])


def test_windows_of_too_many_tokens_are_left_out(task):
    config = dataclasses.replace(OURS, tokenizer=TokenizerConfig(velocity_bins=32, max_tokens=2))
    tight = dataclasses.replace(task, config=config)
    with pytest.raises(InputError, match="every held-out window of first, second has over 2 tokens"):
        _ = tight.heldout


def test_no_split_to_hold_out(task):
    with pytest.raises(InputError, match="no records in a 'test' split; it holds validation"):
        _ = dataclasses.replace(task, heldout_split="test").heldout
