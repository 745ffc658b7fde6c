import numpy as np
from inputs import make_recording, write_dataset

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.dataset import open_dataset
from spectrodiff.evaluation.songs import Songs


def test_songs_are_cut_to_the_given_seconds(tmp_path):
    write_dataset(tmp_path, "toy", {"test": [make_recording(1, 6.0)]})
    records = open_dataset(tmp_path, "toy")["test"]
    whole, cut = Songs(records)[0], Songs(records, 2.5)[0]
    np.testing.assert_array_equal(cut.audio, whole.audio[: round(2.5 * SAMPLE_RATE)])
    assert cut.notes.total_time == 2.5
    assert len(cut.notes) == (whole.notes.start < 2.5).sum()
    assert cut.notes.end.max() == 2.5
    assert Songs(records, 100.0)[0].notes.total_time == whole.notes.total_time
