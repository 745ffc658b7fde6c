import dataclasses

import numpy as np

from spectrodiff.data.builders.rendered.etudes import DRUMS, RANGES, etude


def test_etude_is_determined_by_its_seed():
    for field in dataclasses.fields(one := etude(5)):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(etude(5), field.name))
    assert len(one) != len(etude(6)) or np.any(one.start != etude(6).start)


def test_etudes_have_valid_notes():
    for seed in range(40):
        notes = etude(seed)
        assert np.all(notes.end > notes.start)
        assert np.all(np.diff(notes.start) >= 0)
        assert notes.start[0] >= 0
        assert notes.total_time == notes.end.max() < 75
        assert notes.velocity.min() >= 20
        assert notes.velocity.max() <= 127
        assert np.all(notes.program[notes.is_drum] == 0)


def test_etudes_cover_all_keys_instruments_and_drums():
    heard = {program: set() for program in RANGES}
    drums, loudness = set(), set()
    for seed in range(400):
        notes = etude(seed)
        drums.update(notes.pitch[notes.is_drum].tolist())
        loudness.update(notes.velocity.tolist())
        for program in np.unique(notes.program[~notes.is_drum]).tolist():
            heard[program].update(notes.pitch[~notes.is_drum & (notes.program == program)].tolist())
    assert drums == set(DRUMS.tolist())
    assert heard == {program: set(range(low, high + 1)) for program, (low, high) in RANGES.items()}
    assert len(loudness) > 95
