import dataclasses

import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.recordings import Stem, decode
from spectrodiff.errors import InputError

SECONDS = {"little": 1.0, "much": 8.0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets, of which `much` validates nothing."""
    folder = tmp_path_factory.mktemp("data")
    pieces = {name: [make_recording(seed, seconds) for seed in range(2)] for name, seconds in SECONDS.items()}
    write_dataset(folder, "little", {"train": pieces["little"][:1], "validation": pieces["little"][1:]})
    write_dataset(folder, "much", {"train": pieces["much"]})
    return str(folder)


def shares(data_dir, **options):
    parts, weights = Mixture(data_dir, **options).training()
    assert all(part.split == "train" for part in parts)
    assert weights.sum() == pytest.approx(1.0)
    return dict(zip((part.dataset for part in parts), weights.tolist(), strict=True))


def test_weights_are_shares_once_they_add_up(data_dir):
    assert shares(data_dir, weights={"little": 3.0, "much": 1.0}) == {"little": 0.75, "much": 0.25}
    assert shares(data_dir, weights={"much": 1e-3}) == {"much": 1.0}
    assert shares(data_dir, weights={"little": 2.0, "nowhere": 0.0}) == {"little": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 10 / 3, 1e9])
def test_names_alone_are_weighted_by_size_and_temperature(data_dir, temperature):
    """1 is by size; hot is all alike. `little` trains on 2 s of audio, `much` on 9 s and 9.123 s."""
    got = shares(data_dir, weights=("little", "much"), temperature=temperature)
    assert got["much"] / got["little"] == pytest.approx((18.123 / 2.0) ** (1 / temperature), rel=1e-4)


def test_the_papers_temperature_is_the_default(data_dir):
    names = ("little", "much")
    assert shares(data_dir, weights=names) == shares(data_dir, weights=names, temperature=10 / 3)


def test_one_name_will_do(data_dir):
    assert Mixture(data_dir, "much").names == ["much"]
    assert Mixture(data_dir, ("much", "little", "much")).names == ["much", "little"]
    assert shares(data_dir, weights="much") == {"much": 1.0}


def test_held_out_is_what_has_the_split(data_dir):
    (part,) = Mixture(data_dir, ("little", "much")).heldout("validation")
    assert (part.dataset, part.split) == ("little", "validation")
    with pytest.raises(InputError, match="no records in a 'test' split"):
        Mixture(data_dir, ("little", "much")).heldout("test")


def test_a_dataset_is_read_on_another_program_for_training_and_held_out_alike(tmp_path):
    """All notes but drums, those of stems too; other datasets stay as they are, and so does what is on disk."""
    whole, *parts = (make_recording(seed, 4.0) for seed in range(3))
    whole = dataclasses.replace(whole, stems=tuple(Stem(part.audio, part.notes) for part in parts))
    for name in ("glass", "old"):
        write_dataset(tmp_path, name, {"train": [whole], "validation": [whole]})

    def notes_read(**options):
        """By dataset and split, those of the whole and of its stems, as `decode` and `open_piece` have them."""
        mixture = Mixture(str(tmp_path), ("glass", "old"), **options)
        read = {}
        for records in [*mixture.training()[0], *mixture.heldout("validation")]:
            recording, piece = decode(records[0]), open_piece(records[0], stems=True)
            parts = [recording, *recording.stems, piece, *piece.stems]
            read[records.dataset, records.split] = [part.notes for part in parts]
        return read

    plain = notes_read()
    for (name, split), notes in notes_read(programs={"glass": 98}).items():
        for ours, theirs in zip(notes, plain[name, split], strict=True):
            assert 0 < theirs.is_drum.sum() < len(theirs)
            program = np.where(theirs.is_drum, theirs.program, 98) if name == "glass" else theirs.program
            for field in dataclasses.fields(ours):
                expected = program if field.name == "program" else getattr(theirs, field.name)
                np.testing.assert_array_equal(getattr(ours, field.name), expected)


def test_what_is_not_there(data_dir):
    with pytest.raises(InputError, match="no dataset 'nowhere'"):
        Mixture(data_dir, {"little": 1.0, "nowhere": 1.0}).training()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, "names no dataset"),
        ({"weights": ()}, "names no dataset"),
        ({"weights": {"a": 0.0}}, "names no dataset"),
        ({"weights": {"a": 1.0, "b": -1.0}}, r"has -1\.0 for 'b'"),
        ({"weights": {"a": float("nan")}}, "has nan for 'a'"),
        ({"weights": {"a": float("inf")}}, "has inf for 'a'"),
        (
            {"weights": {"a": 1.0}, "programs": {"b": 3}},
            r"Mixture\.programs names 'b', which is not in Mixture\.weights",
        ),
        (
            {"weights": "a", "programs": {"a": 128}},
            r"Mixture\.programs has 128 for 'a'",
        ),
        ({"temperature": 0.0}, r"Mixture\.temperature is 0\.0"),
        ({"temperature": float("nan")}, r"Mixture\.temperature is nan"),
    ],
)
def test_nonsense(options, message):
    with pytest.raises(InputError, match=message):
        Mixture("data", **options)
