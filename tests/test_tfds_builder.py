import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from toy_corpus import Toy

from spectrodiff.data.builders.tfds_builder import VERSION, build
from spectrodiff.data.dataset import open_dataset


def record(name, stems=0, size=1000):
    """A record with bytes that are not valid text."""
    rng = np.random.default_rng(size)
    part = {"audio": rng.bytes(size), "notes": b"\0\xff\0" + rng.bytes(3)}
    return {
        "name": name,
        **part,
        "stems": [{"audio": bytes([number]) * number, "notes": b""} for number in range(stems)],
    }


def shards_of(*parts):
    return [lambda part=part: enumerate(part) for part in parts]


RECORDS = [record("a"), record("b/ä ♪", stems=3), record("c", stems=1, size=0), record("d", size=300_000)]


def test_records_are_read_back_unchanged_and_in_order(tmp_path):
    shards = {"train": shards_of(RECORDS[:1], RECORDS[1:3]), "test": shards_of(RECORDS[3:])}
    folder = build(Toy(), {"options": {"gain": 1.0}}, tmp_path, shards)
    assert folder == tmp_path / "toy" / VERSION
    dataset = open_dataset(tmp_path, "toy")
    assert dataset.splits == ["train", "test"]
    found = [*dataset["train"], *dataset["test"]]
    assert [each["name"] for each in found] == [each["name"].encode() for each in RECORDS]
    for one, other in zip(found, RECORDS, strict=True):
        assert {key: one[key] for key in ("audio", "notes", "stems")} == {
            key: other[key] for key in ("audio", "notes", "stems")
        }
    assert len(list(folder.glob("*.array_record-*"))) == 3


def test_dataset_info_and_metadata_are_written(tmp_path):
    folder = build(Toy(), {"options": {"gain": 0.5}}, tmp_path, {"train": shards_of(RECORDS)})
    info = open_dataset(tmp_path, "toy").builder.info
    assert (info.name, str(info.version)) == ("toy", VERSION)
    assert (info.description, info.homepage) == (Toy.description, Toy.homepage)
    assert json.loads((folder / "metadata.json").read_text()) == {"options": {"gain": 0.5}}


def test_failed_build_leaves_no_files(tmp_path):
    def failing():
        yield 0, RECORDS[0]
        raise ValueError("on the way")

    with pytest.raises(ValueError, match="on the way"):
        build(Toy(), {}, tmp_path, {"test": shards_of(RECORDS), "train": [failing]})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_build_does_not_import_tensorflow_or_print(tmp_path):
    program = (
        "import pathlib, sys; from toy_corpus import Toy; from spectrodiff.data.builders.tfds_builder import build;"
        "part = {'audio': b'a', 'notes': b'n'}; rows = [(0, {'name': 'x', **part, 'stems': [part]})];"
        f"build(Toy(), {{}}, pathlib.Path({str(tmp_path)!r}), {{'train': [lambda: iter(rows)]}});"
        "print('tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("False\n", "")
