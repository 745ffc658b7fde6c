"""The loader that keeps a corpus on the device: its windows match those cut from records, and runs can resume."""

import collections
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from inputs import OURS, make_recording, write_dataset
from safetensors.numpy import load_file

from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.resident import ResidentLoader
from spectrodiff.data.windows import SILENCE, Windows, cut_window
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training import loop
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask

TOKENIZER = NoteTokenizer(OURS.tokenizer)
LOADER = ResidentLoader(stride=48, workers=1)
BATCH = 8


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets: `two` with a short record and one longer than two windows, and `one` with a single record."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "two", {"train": [make_recording(1, 2.0), make_recording(2, seconds=14.0)]})
    write_dataset(folder, "one", {"train": [make_recording(3)]})
    return folder


@pytest.fixture(scope="module")
def mixture(data_dir):
    return Mixture(str(data_dir), {"two": 0.75, "one": 0.25})


def windows(**options):
    return Windows(**{"tokenizer": TOKENIZER, "tokens_per_note": 2, "tokens": 256, "first_share": 0.05} | options)


def take(mixture, count, loader=LOADER, start=0, seed=0, batch_size=BATCH, **options):
    batches = loader.batches(mixture, windows(**options), batch_size=batch_size, seed=seed, start=start)
    return jax.device_get(list(itertools.islice(batches, count)))


@pytest.fixture(scope="module")
def drawn_windows(mixture):
    """Five hundred drawn windows, as arrays by name."""
    batches = take(mixture, 5, batch_size=100)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_windows_match_cut_window_to_float16_precision(drawn_windows, data_dir):
    """Each different window is compared, among them first and last ones with short contexts and targets."""
    datasets = [open_dataset(data_dir, name)["train"] for name in ("two", "one")]
    seen = {}
    for i, ((which, index), start) in enumerate(
        zip(drawn_windows["record"].tolist(), drawn_windows["start"].tolist(), strict=True)
    ):
        seen[which, index, start] = i
    timelines = {}
    for (which, index, start), i in seen.items():
        piece = open_piece(datasets[which][index])
        timeline = timelines.setdefault((which, index), TOKENIZER.timeline(piece.notes))
        expected = cut_window(piece, timeline, start, TOKENIZER, 256, 128)
        for name in ("tokens", "target_mask", "context_mask"):
            assert drawn_windows[name].dtype == expected[name].dtype
            np.testing.assert_array_equal(drawn_windows[name][i], expected[name], err_msg=f"{name} at {start}")
        for name in ("target", "context"):
            assert drawn_windows[name].dtype == np.float32
            off = np.abs(drawn_windows[name][i] - expected[name]).max()
            assert off <= 2**-11 + 1e-5, (name, start, off)  # half a float16 step below 1, plus rounding of the mel
    frames, before = (drawn_windows[f"{name}_mask"].sum(1) for name in ("target", "context"))
    assert {frames.max(), before.max(), before.min()} == {256, 0}
    assert frames.min() < 256
    assert any(0 < count < 256 for count in before)
    assert (drawn_windows["overfull"] == 0).all()


def test_window_starts_are_one_stride_apart_and_all_are_drawn(drawn_windows, data_dir):
    starts = collections.defaultdict(set)
    for record, start in zip(drawn_windows["record"].tolist(), drawn_windows["start"].tolist(), strict=True):
        starts[tuple(record)].add(start)
    assert starts.keys() == {(0, 0), (0, 1), (1, 0)}
    pieces = [open_piece(record) for name in ("two", "one") for record in open_dataset(data_dir, name)["train"]]
    for piece, (_, found) in zip(pieces, sorted(starts.items()), strict=True):
        first, *rest = sorted(found)
        assert first == 0
        assert 0 < rest[0] <= 48
        assert set(np.diff(rest)) <= {48}
        assert piece.frames - 64 - 48 <= max(rest) < piece.frames - 64


def test_windows_after_the_end_are_silent_with_silence_after(data_dir):
    (batch,) = take(Mixture(str(data_dir), {"one": 1.0}), 1, batch_size=200, silence_after=12.0)
    (record,) = open_dataset(data_dir, "one")["train"]
    after = batch["start"] >= open_piece(record).frames + 256
    assert after.any()
    assert batch["context_mask"][after].all()
    assert batch["target_mask"][after].sum(1).min() >= 64
    for name in ("context", "target"):
        assert (batch[name][after] == SILENCE).all()


def test_batch_format_matches_the_default_loader(mixture):
    task = SpectrogramTask(mixture, OURS, batch_size=4, tokens=256)
    other = task.batches(seed=0)
    batch, ours = next(other), next(dataclasses.replace(task, loader=LOADER).batches(seed=0))
    other.close()
    assert {name: (array.shape, array.dtype) for name, array in ours.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert all(isinstance(array, jax.Array) for array in ours.values())
    assert task.sources(jax.device_get(ours))[0].startswith(("two/", "one/"))


def same(ours, theirs):
    return all(np.array_equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)


def test_seed_and_start_determine_the_batches(mixture):
    whole = take(mixture, 4)
    assert same(take(mixture, 2, start=2 * BATCH), whole[2:])
    assert not same(take(mixture, 1, seed=1), whole[:1])
    assert not same(whole[:1], whole[1:2])


@pytest.mark.trial
def test_worker_count_does_not_change_the_batches(mixture):
    assert same(take(mixture, 1, ResidentLoader(stride=48, workers=2)), take(mixture, 1))


def test_dataset_shares_match_the_mixture_weights(mixture):
    """Records of a dataset are drawn by their numbers of windows. Shares agree within four standard deviations."""
    count = 1500
    (batch,) = take(mixture, 1, batch_size=count, first_share=0.0)
    which, index = batch["record"].T
    assert abs(np.mean(which == 0) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)
    of_two = batch["start"][which == 0], index[which == 0]
    sizes = [len({*of_two[0][of_two[1] == record].tolist()}) for record in (0, 1)]
    share = sizes[0] / sum(sizes)
    assert abs(np.mean(of_two[1] == 0) - share) < 4 * np.sqrt(share * (1 - share) / len(of_two[1]))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_share_of_first_windows_is_first_share(mixture, share, drawn_windows):
    count = 1000
    (batch,) = take(dataclasses.replace(mixture, weights={"two": 1.0}), 1, batch_size=count, first_share=share)
    drawn = zip(drawn_windows["record"].tolist(), drawn_windows["start"].tolist(), strict=True)
    places = len({(index, start) for (which, index), start in drawn if which == 0})
    expected = share + (1 - share) * 2 / places
    assert abs(np.mean(batch["start"] == 0) - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)
    firsts = batch["record"][batch["start"] == 0, 1]
    assert abs(np.mean(firsts == 0) - 0.5) < 4 * np.sqrt(
        0.25 / len(firsts)
    )  # first windows are drawn equally from all records


def test_overfull_first_windows_are_replaced_by_others(tmp_path):
    """Of a dense piece followed by silence only later windows are drawn, also in place of first windows."""
    dense = make_recording(0, seconds=4.0, voices=40, drums=60)
    silence = np.zeros(20 * 16000, np.float32)
    notes = dataclasses.replace(dense.notes, total_time=dense.notes.total_time + 20.0)
    write_dataset(
        tmp_path,
        "crowd",
        {"train": [dataclasses.replace(dense, audio=np.concatenate([dense.audio, silence]), notes=notes)]},
    )
    mixture = Mixture(str(tmp_path), "crowd")
    (batch,) = take(mixture, 1, batch_size=200, tokens=64, first_share=0.5)
    timeline = TOKENIZER.timeline(notes)
    assert len(TOKENIZER.window(timeline, 0)) > 64
    for start, row in dict(zip(batch["start"].tolist(), batch["tokens"], strict=True)).items():
        assert start > 0
        window = TOKENIZER.window(timeline, start)
        np.testing.assert_array_equal(row, np.pad(window, (0, 64 - len(window))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentation": Augmentation(gain_db=(-1.0, 1.0))}, r"\bresident\b.*\bLoader$"),
        ({"audio": True}, r"\bresident\b.*\bLoader$"),
        ({"tokens": 1}, r"\b1 tokens\b.*SpectrogramTask\.tokens"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch size is 0"),
    ],
)
def test_unsupported_options_raise_input_error(mixture, options, message):
    with pytest.raises(InputError, match=message):
        take(mixture, 1, **options)


@pytest.mark.parametrize("options", [{"stride": 0}, {"workers": 0}])
def test_invalid_loader_settings_raise_input_error(options):
    with pytest.raises(InputError, match=r"(stride|workers) (is )?0"):
        ResidentLoader(**options)


# ---- training


@pytest.fixture(scope="module")
def task(data_dir):
    """A task with one dataset, and with dropout so that random numbers of the steps matter too."""
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, dropout=0.1))
    return SpectrogramTask(Mixture(str(data_dir), "one"), config, batch_size=4, tokens=256, loader=LOADER)


def train(workdir, task, steps):
    loop.train(workdir, task=task, optimizer=adamw(3e-3), steps=steps, log_every=1, average_decay=0.9)
    return load_file(workdir / "export" / "spectrogram.safetensors")


@pytest.mark.trial
def test_interrupted_run_resumes_bit_for_bit(task, tmp_path):
    whole = train(tmp_path / "whole", task, 24)
    for steps in (10, 24):
        stopped = train(tmp_path / "stopped", task, steps)
    assert whole.keys() == stopped.keys()
    assert all(np.array_equal(whole[name], stopped[name]) for name in whole)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert len(losses) == 24
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:3])
