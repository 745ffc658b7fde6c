import sys
import threading

import numpy as np
from inputs import random_notes

from spectrodiff.notes import sequence
from spectrodiff.notes.sequence import from_note_sequence, to_note_sequence


def test_importing_note_seq_in_threads_restores_stdout():
    """The import suppresses note-seq's output; concurrent imports must not leave stdout redirected."""
    before, interval = sys.stdout, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            sequence.import_silently.cache_clear()
            threads = [threading.Thread(target=sequence.import_note_seq) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sys.stdout is before
    finally:
        sys.setswitchinterval(interval)


def test_notes_round_trip_through_note_sequence():
    notes = random_notes(0)
    read = from_note_sequence(to_note_sequence(notes))
    for field in ("start", "end", "pitch", "velocity", "program", "is_drum"):
        np.testing.assert_array_equal(getattr(read, field), getattr(notes, field))
    assert read.total_time == notes.total_time
