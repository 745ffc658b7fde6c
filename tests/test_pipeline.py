import json

import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import Loader
from spectrodiff.data.recordings import decode
from spectrodiff.data.windows import Windows, cut_window
from spectrodiff.errors import InputError
from spectrodiff.notes.tokenizer import NoteTokenizer

TOKENIZER = NoteTokenizer()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets: `few` with 12 pieces of increasing length, and `one` with a single piece."""
    folder = tmp_path_factory.mktemp("data")
    few = [make_recording(seed, 0.6 + 0.3 * seed, voices=1, drums=1) for seed in range(12)]
    write_dataset(folder, "few", {"train": few})
    write_dataset(folder, "one", {"train": [make_recording(12, 2.0)]})
    return folder


@pytest.fixture
def mixture(data_dir):
    return Mixture(str(data_dir), {"few": 0.75, "one": 0.25})


class PieceNumbers:
    """Examples that contain the number of their piece and the first random number of their generator."""

    def __init__(self):
        self.reads = 0

    def read(self, record):
        self.reads += 1
        return int(decode(record).name.removeprefix("piece")), len(record["audio"])

    def draw(self, candidates, rng):
        return {"number": np.array(rng.random()), "piece": np.array(next(candidates))}


def collect(mixture, count, examples=None, loader=None, **options):
    """The first `count` examples of `PieceNumbers`, as arrays by name."""
    options = {"batch_size": 4, "seed": 0} | options
    batches = (loader or Loader()).batches(mixture, examples or PieceNumbers(), **options)
    taken = [next(batches) for _ in range(count * options.get("process_count", 1) // options["batch_size"])]
    batches.close()
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


@pytest.fixture
def windows(corpus):
    """A function that starts batches of windows of the corpus; their threads end with the test."""
    started = []

    def start(seed=0, batch_size=4, tokens=256, **options):
        examples = Windows(TOKENIZER, 2, tokens, first_share=0.05)
        mixture = Mixture(str(corpus))
        started.append(Loader(**options).batches(mixture, examples, batch_size=batch_size, seed=seed))
        return started[-1]

    yield start
    for iterator in started:
        iterator.close()


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def same(first, second):
    return all(np.array_equal(a[k], b[k]) for a, b in zip(first, second, strict=True) for k in a)


def test_batches_hold_windows_and_their_sources(windows, corpus):
    batch = next(windows())
    assert {name: array.shape for name, array in batch.items()} == {
        "tokens": (4, 256),
        "target": (4, 256, 128),
        "target_mask": (4, 256),
        "context": (4, 256, 128),
        "context_mask": (4, 256),
        "overfull": (4,),
        "start": (4,),
        "record": (4, 2),
    }
    records = open_dataset(corpus, "rendered")["train"]
    for i in range(4):
        (dataset, which), start = batch["record"][i], int(batch["start"][i])
        assert dataset == 0
        piece = open_piece(records[int(which)])
        example = cut_window(piece, TOKENIZER.timeline(piece.notes), start, TOKENIZER, 256, 128)
        assert all(np.array_equal(batch[k][i], example[k]) for k in example)
    name = records[int(batch["record"][0, 1])]["name"]
    assert Mixture(str(corpus)).sources(batch)[0] == f"rendered/{name} at {batch['start'][0] / 50:.2f} s"


def test_seed_determines_the_batches(windows):
    assert same(take(windows(), 3), take(windows(), 3))
    assert not same(take(windows(), 1), take(windows(seed=1), 1))


def test_thread_count_does_not_change_the_batches(mixture):
    one, many = (collect(mixture, 200, loader=Loader(threads=threads)) for threads in (1, 7))
    assert same([one], [many])


@pytest.mark.parametrize("threads", [1, 3])
def test_restored_state_continues_the_same_batches(windows, threads):
    """The state goes through JSON and does not depend on what the threads have read ahead."""
    options = {"threads": threads, "windows_per_piece": 2}
    whole = take(windows(**options), 6)
    stopped = windows(**options)
    take(stopped, 3)
    state = json.loads(json.dumps(stopped.get_state()))
    continued = windows(**options)
    continued.set_state(state)
    assert same(take(continued, 3), whole[3:])
    assert same(take(stopped, 3), whole[3:])  # get_state has no side effects
    stopped.set_state(state)  # batches read ahead of the state are produced again
    assert same(take(stopped, 3), whole[3:])
    assert not same(whole[:1], whole[1:2])


@pytest.mark.parametrize("hosts", [1, 2])
def test_start_option_skips_examples(mixture, hosts):
    """The number of hosts may differ from that of the earlier run."""
    whole = collect(mixture, 40)["number"]
    parts = [
        collect(mixture, 24 // hosts, batch_size=4 * hosts, start=16, process_index=i, process_count=hosts)["number"]
        for i in range(hosts)
    ]
    np.testing.assert_array_equal(np.stack(parts, axis=1).ravel(), whole[16:])


def test_hosts_split_the_examples_of_a_single_host(mixture):
    alone = collect(mixture, 120)
    hosts = [collect(mixture, 40, batch_size=12, process_index=i, process_count=3) for i in range(3)]
    assert len({*alone["number"].tolist()}) == 120
    for name in ("number", "piece"):
        np.testing.assert_array_equal(np.stack([host[name] for host in hosts], axis=1).ravel(), alone[name])


def test_pieces_are_drawn_by_dataset_weight_and_length(mixture, data_dir):
    """Each share is within four standard deviations of its expected value."""
    count = 4000
    drawn = np.bincount(collect(mixture, count, batch_size=100)["piece"], minlength=13) / count
    records = open_dataset(data_dir, "few")["train"]
    seconds = {int(decode(record).name[5:]): len(decode(record).audio) for record in records}
    shares = np.array([0.75 * seconds[i] / sum(seconds.values()) for i in range(12)] + [0.25])
    np.testing.assert_array_less(np.abs(drawn - shares), 4 * np.sqrt(shares * (1 - shares) / count))


@pytest.mark.parametrize("stay", [1, 4])
def test_each_piece_gives_windows_per_piece_windows(mixture, stay):
    """Of 64 pieces in use, a few are replaced in every round."""
    turns = collect(mixture, 64 * 40, loader=Loader(windows_per_piece=stay), batch_size=64)["piece"].reshape(40, 64)
    leaving = (np.arange(1, 40)[:, None] + np.arange(64)) % stay == 0
    changed = np.diff(turns, axis=0) != 0
    assert not changed[~leaving].any()
    assert changed[leaving].mean() > 0.7  # the others drew the same piece again


def test_cached_pieces_are_not_read_again(mixture):
    large_cache, no_cache = PieceNumbers(), PieceNumbers()
    one = collect(mixture, 400, large_cache, Loader(threads=1))
    other = collect(mixture, 400, no_cache, Loader(threads=1, memory_gb=0.0))
    assert same([one], [other])
    assert large_cache.reads <= 13
    assert no_cache.reads > 100


def test_overfull_windows_raise_input_error_naming_the_setting(windows):
    with pytest.raises(InputError, match=r"SpectrogramTask\.tokens"):
        next(windows(batch_size=1, tokens=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -4}, "start is -4"),
        ({"process_index": 0, "process_count": 3}, r"batch size is 4\b.*\b3\b"),
    ],
)
def test_invalid_batch_options_raise_input_error(mixture, options, message):
    with pytest.raises(InputError, match=message):
        Loader().batches(mixture, PieceNumbers(), **{"batch_size": 4, "seed": 0} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, r"Loader\.threads is 0"),
        ({"windows_per_piece": 0}, r"Loader\.windows_per_piece is 0"),
        ({"memory_gb": -1.0}, r"Loader\.memory_gb is -1\.0"),
        ({"memory_gb": float("nan")}, r"Loader\.memory_gb is nan"),
    ],
)
def test_invalid_loader_settings_raise_input_error(options, message):
    with pytest.raises(InputError, match=message):
        Loader(**options)


def test_missing_dataset_raises_input_error(tmp_path):
    with pytest.raises(InputError, match=f"'rendered' in {tmp_path} "):
        Loader().batches(Mixture(str(tmp_path)), PieceNumbers(), batch_size=4, seed=0)
