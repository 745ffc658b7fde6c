"""Token ids, compared with ids computed by hand from the published layout."""

import numpy as np
import pytest

from spectrodiff.notes.vocabulary import EOS, PAD, UNKNOWN, Vocabulary


def test_one_velocity_bin_gives_the_published_ids():
    v = Vocabulary(1)
    assert (PAD, EOS, UNKNOWN) == (0, 1, 2)
    assert [v.shift(0), v.shift(1000), v.pitch(0), v.pitch(127)] == [3, 1003, 1004, 1131]
    assert [v.velocity(0), v.velocity(1), v.velocity(127), v.tie] == [1132, 1133, 1133, 1134]
    assert [v.program(0), v.program(127), v.drum(0), v.drum(127)] == [1135, 1262, 1263, 1390]
    assert (v.size, v.rows) == (1388 + 3 + 100, 1536)


def test_127_velocity_bins_shift_the_later_ids():
    v = Vocabulary(127)
    assert [v.velocity(0), v.velocity(127), v.tie, v.program(0), v.drum(0)] == [1132, 1259, 1260, 1261, 1389]
    assert (v.size, v.rows) == (1617, 1664)


@pytest.mark.parametrize(("bins", "velocity", "bin_"), [(1, 1, 1), (4, 31, 1), (4, 32, 2), (4, 127, 4), (127, 64, 64)])
def test_velocities_are_rounded_up_to_bins(bins, velocity, bin_):
    vocabulary = Vocabulary(bins)
    assert vocabulary.velocity(velocity) == 1132 + bin_
    np.testing.assert_array_equal(vocabulary.velocity(np.array([0, velocity])), [1132, 1132 + bin_])


@pytest.mark.parametrize("bins", [1, 2, 5, 32, 126, 127])
def test_event_inverts_token_ids(bins):
    vocabulary = Vocabulary(bins)
    for token in range(UNKNOWN + 1, vocabulary.end):
        name, value = vocabulary.event(token)
        assert (vocabulary.tie if name == "tie" else getattr(vocabulary, name)(value)) == token
    for token in (PAD, EOS, UNKNOWN, vocabulary.end, vocabulary.rows, -1):
        assert vocabulary.event(token) == ("unknown", token)
