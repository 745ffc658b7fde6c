import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, make_recording, write_dataset

from spectrodiff.config import TokenizerConfig
from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.windows import cut_window
from spectrodiff.errors import InputError
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.steps import Others

NO_OTHERS = Others(lambda: None, {})
TENSORS = ("tokens", "context", "context_mask", "target", "target_mask")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets with validation splits, of 2 windows in `first` and 2 + 3 in `second`."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "first", {"validation": [make_recording(0)]})
    write_dataset(folder, "second", {"validation": [make_recording(1), make_recording(2, seconds=11.0)]})
    return folder


@pytest.fixture(scope="module")
def task(data_dir):
    return SpectrogramTask(Mixture(str(data_dir), ("first", "second")), OURS, heldout_windows=100)


def test_heldout_windows_are_all_or_spread_over_datasets(task, data_dir):
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
        assert got["tokens"].shape == (len(windows), 512)  # as many as needed, of at most 2048
        np.testing.assert_array_equal(got["tokens"], [window["tokens"][:512] for window in windows])
        for key in ("target", "target_mask", "context", "context_mask", "dataset"):
            np.testing.assert_array_equal(got[key], [window[key] for window in windows])


def test_heldout_windows_are_spread_evenly_over_a_dataset(task, data_dir):
    """Every second of five windows, as in earlier versions that supported a single dataset."""
    alone = dataclasses.replace(task, mixture=Mixture(str(data_dir), "second"))
    all_windows = alone.heldout["target"]
    few = dataclasses.replace(alone, heldout_windows=3).heldout
    np.testing.assert_array_equal(few["target"], all_windows[::2])


def test_loss_is_a_mean_over_all_frames_of_the_batch(task):
    """A window therefore counts in proportion to its number of unmasked frames."""
    model, key = task.build(nnx.Rngs(0)), jax.random.key(3)
    batch = {name: np.asarray(task.heldout[name][[0, 2]]) for name in TENSORS}
    graph, state = nnx.split(model)

    @jax.jit
    def losses(batch):
        """The loss of the batch and those of its windows, with the same random numbers."""
        model, (loss_key, _) = nnx.merge(graph, state), jax.random.split(key)
        conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], 256)
        each, _ = model.decoder.loss(conditioning, batch["target"], batch["target_mask"], loss_key)
        return task.loss(model, batch, key, NO_OTHERS)[0], each

    for frames in ([256, 30], [120, 30], [256, 256]):
        batch["target_mask"] = np.arange(256) < np.array(frames)[:, None]
        whole, each = losses(batch)
        assert float(whole) == pytest.approx(float(np.dot(each, frames) / sum(frames)), rel=1e-5)
    batch["target_mask"] = np.zeros((2, 256), bool)
    assert float(losses(batch)[0]) == 0.0


def test_overfull_count_is_a_metric(task):
    model = task.build(nnx.Rngs(0))
    batch = {name: np.asarray(task.heldout[name][:2]) for name in TENSORS} | {"overfull": np.array([0, 3])}
    metrics = jax.eval_shape(lambda batch: task.loss(model, batch, jax.random.key(0), NO_OTHERS)[1], batch)
    assert metrics.keys() == {"overfull"}
    del batch["overfull"]
    assert jax.eval_shape(lambda batch: task.loss(model, batch, jax.random.key(0), NO_OTHERS)[1], batch) == {}


def test_task_options_apply_to_training_windows(corpus):
    """These are batch size, token count, share of first windows, handling of overfull windows, and augmentation."""
    task = SpectrogramTask(Mixture(str(corpus)), OURS, batch_size=3, tokens=256, first_share=1.0)
    batches = task.batches(seed=0)
    batch = next(batches)
    batches.close()
    assert batch["tokens"].shape == (3, 256)
    assert batch["start"].tolist() == [0, 0, 0]
    assert [name.split(" at ")[1] for name in task.sources(batch)] == ["0.00 s"] * 3
    loud = dataclasses.replace(task, augmentation=Augmentation(gain_db=(20.0, 20.0))).batches(seed=0)
    assert next(loud)["target"].mean() > batch["target"].mean() + 0.1
    loud.close()
    few = dataclasses.replace(task, tokens=4).batches(seed=0)
    with pytest.raises(InputError, match=r"SpectrogramTask\.tokens"):
        next(few)
    thinned = dataclasses.replace(task, tokens=4, on_overflow="thin").batches(seed=0)
    assert next(thinned)["overfull"].tolist() == [1, 1, 1]
    thinned.close()


def test_only_overfull_heldout_windows_raise_input_error(task):
    config = dataclasses.replace(OURS, tokenizer=TokenizerConfig(velocity_bins=32, max_tokens=2))
    tight = dataclasses.replace(task, config=config)
    with pytest.raises(InputError, match=r"first, second .*2 tokens"):
        _ = tight.heldout


def test_missing_heldout_split_raises_input_error(task):
    with pytest.raises(InputError, match=r"'test'.*validation"):
        _ = dataclasses.replace(task, heldout_split="test").heldout
