import dataclasses

import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.recordings import Stem, decode
from spectrodiff.errors import InputError

SECONDS = {"small": 1.0, "large": 8.0}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two datasets, of which `large` has no validation split."""
    folder = tmp_path_factory.mktemp("data")
    pieces = {name: [make_recording(seed, seconds) for seed in range(2)] for name, seconds in SECONDS.items()}
    write_dataset(folder, "small", {"train": pieces["small"][:1], "validation": pieces["small"][1:]})
    write_dataset(folder, "large", {"train": pieces["large"]})
    return str(folder)


def shares(data_dir, **options):
    parts, weights = Mixture(data_dir, **options).training()
    assert all(part.split == "train" for part in parts)
    assert weights.sum() == pytest.approx(1.0)
    return dict(zip((part.dataset for part in parts), weights.tolist(), strict=True))


def test_weights_are_normalised_to_shares(data_dir):
    assert shares(data_dir, weights={"small": 3.0, "large": 1.0}) == {"small": 0.75, "large": 0.25}
    assert shares(data_dir, weights={"large": 1e-3}) == {"large": 1.0}
    assert shares(data_dir, weights={"small": 2.0, "nowhere": 0.0}) == {"small": 1.0}


@pytest.mark.parametrize("temperature", [1.0, 10 / 3, 1e9])
def test_names_without_weights_use_size_and_temperature(data_dir, temperature):
    """Temperature 1 is proportional to size, infinity is uniform. `small` has 2 s of audio, `large` 9 s and 9.123 s."""
    got = shares(data_dir, weights=("small", "large"), temperature=temperature)
    assert got["large"] / got["small"] == pytest.approx((18.123 / 2.0) ** (1 / temperature), rel=1e-4)


def test_default_temperature_is_the_papers(data_dir):
    names = ("small", "large")
    assert shares(data_dir, weights=names) == shares(data_dir, weights=names, temperature=10 / 3)


def test_single_name_and_duplicates_are_accepted(data_dir):
    assert Mixture(data_dir, "large").names == ["large"]
    assert Mixture(data_dir, ("large", "small", "large")).names == ["large", "small"]
    assert shares(data_dir, weights="large") == {"large": 1.0}


def test_heldout_lists_datasets_that_have_the_split(data_dir):
    (part,) = Mixture(data_dir, ("small", "large")).heldout("validation")
    assert (part.dataset, part.split) == ("small", "validation")
    with pytest.raises(InputError, match="'test' split"):
        Mixture(data_dir, ("small", "large")).heldout("test")


def test_programs_option_replaces_programs_in_every_split(tmp_path):
    """All notes but drums are changed, those of stems too; other datasets and the records on disk stay the same."""
    whole, *parts = (make_recording(seed, 4.0) for seed in range(3))
    whole = dataclasses.replace(whole, stems=tuple(Stem(part.audio, part.notes) for part in parts))
    for name in ("glass", "old"):
        write_dataset(tmp_path, name, {"train": [whole], "validation": [whole]})

    def notes_read(**options):
        """The notes of the mix and its stems by dataset and split, as `decode` and `open_piece` return them."""
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


def test_missing_dataset_raises_input_error(data_dir):
    with pytest.raises(InputError, match="dataset 'nowhere'"):
        Mixture(data_dir, {"small": 1.0, "nowhere": 1.0}).training()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {}}, r"^Mixture\.weights .*\bdataset\b"),
        ({"weights": ()}, r"^Mixture\.weights .*\bdataset\b"),
        ({"weights": {"a": 0.0}}, r"^Mixture\.weights .*\bdataset\b"),
        ({"weights": {"a": 1.0, "b": -1.0}}, r"-1\.0 .*'b'"),
        ({"weights": {"a": float("nan")}}, "nan .*'a'"),
        ({"weights": {"a": float("inf")}}, "inf .*'a'"),
        (
            {"weights": {"a": 1.0}, "programs": {"b": 3}},
            r"Mixture\.programs .*'b'.*Mixture\.weights",
        ),
        (
            {"weights": "a", "programs": {"a": 128}},
            r"Mixture\.programs .*\b128 .*'a'",
        ),
        ({"temperature": 0.0}, r"Mixture\.temperature is 0\.0"),
        ({"temperature": float("nan")}, r"Mixture\.temperature is nan"),
    ],
)
def test_invalid_settings_raise_input_error(options, message):
    with pytest.raises(InputError, match=message):
        Mixture("data", **options)
