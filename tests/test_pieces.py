import threading

import numpy as np
from inputs import make_recording

from spectrodiff.data.pieces import LRUCache, count_samples, open_piece
from spectrodiff.data.recordings import Recording, Stem, decode, encode

WHOLE = make_recording(1, seconds=2.0)
RECORD = encode(Recording("whole", WHOLE.audio, WHOLE.notes, (Stem(WHOLE.audio / 2, WHOLE.notes),)))


def test_piece_reads_any_part_of_its_recording():
    piece, audio = open_piece(RECORD), decode(RECORD).audio
    assert piece.samples == count_samples(RECORD["audio"]) == len(audio)
    assert piece.frames == -(-len(audio) // 320)
    for start, count in ((0, 100), (12345, 6789), (len(audio) - 50, 100), (len(audio) + 5, 10)):
        np.testing.assert_array_equal(piece.read(start, count), audio[start : start + count])
    np.testing.assert_array_equal(piece.notes.start, WHOLE.notes.start)
    assert piece.notes is piece.notes


def test_with_silence_extends_a_piece_and_its_stems():
    piece = open_piece(RECORD, stems=True)
    longer = piece.with_silence(0.5)
    assert longer.samples == longer.stems[0].samples == piece.samples + 8000
    whole = np.pad(piece.read(0, piece.samples), (0, 8000))
    for start, count in ((0, 10**6), (piece.samples - 100, 300), (piece.samples + 50, 300), (longer.samples - 9, 20)):
        np.testing.assert_array_equal(longer.read(start, count), whole[start : start + count])
    assert len(longer.notes) == len(piece.notes)
    assert piece.with_silence(0.0) is piece


def test_stems_are_read_on_request():
    assert open_piece(RECORD).stems == ()
    (stem,) = open_piece(RECORD, stems=True).stems
    np.testing.assert_allclose(stem.read(0, stem.samples), WHOLE.audio / 2, atol=2**-15)


def test_lru_cache_keeps_recently_used_items():
    read = []

    def get(key, size=10):
        return cache.get(key, lambda: (read.append(key), (f"item {key}", size))[1])

    cache = LRUCache(30)
    assert [get(key) for key in (1, 2, 3, 1)] == ["item 1", "item 2", "item 3", "item 1"]
    assert read == [1, 2, 3]
    get(4)  # evicts 2
    get(1), get(3), get(4)
    assert read == [1, 2, 3, 4]
    get(2)  # evicts 1
    get(5, size=20)  # evicts 3 and 4
    get(2)
    assert read == [1, 2, 3, 4, 2, 5]
    get(6, size=1000)  # larger than the capacity, but kept all the same
    get(6)
    get(5)
    assert read == [1, 2, 3, 4, 2, 5, 6, 5]


def test_lru_cache_counts_an_item_read_by_two_threads_once():
    """Neither thread waits for the other, so both read the item."""
    cache, both = LRUCache(20), threading.Barrier(2, timeout=10)

    def read():
        both.wait()
        return "item", 10

    threads = [threading.Thread(target=cache.get, args=(1, read)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.get(2, lambda: ("other", 10))
    assert cache.get(1, lambda: ("read again", 10)) == "item"
