import dataclasses
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import Stem, decode
from spectrodiff.errors import InputError

RECORDINGS = [make_recording(seed, seconds=1.0 + seed, voices=2) for seed in range(4)]
RECORDINGS[2] = dataclasses.replace(
    RECORDINGS[2], stems=tuple(Stem(RECORDINGS[2].audio / n, RECORDINGS[i].notes) for n, i in ((2, 0), (4, 1)))
)


@pytest.fixture(scope="module")
def prepared_data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, "ours", {"train": RECORDINGS[:3], "test": RECORDINGS[3:]})
    return folder


@pytest.fixture
def writable_copy(prepared_data_dir, tmp_path):
    """A data_dir that a test may damage."""
    shutil.copytree(prepared_data_dir / "ours", tmp_path / "ours")
    return tmp_path


def assert_recordings_equal(one, other):
    assert len(one.audio) == len(other.audio)
    np.testing.assert_allclose(one.audio, other.audio, atol=2**-15)
    for field in dataclasses.fields(one.notes):
        np.testing.assert_array_equal(getattr(one.notes, field.name), getattr(other.notes, field.name))


def test_records_equal_the_prepared_recordings(prepared_data_dir):
    dataset = open_dataset(prepared_data_dir, "ours")
    assert dataset.splits == ["train", "test"]
    assert len(dataset["train"]) == 3
    found = {recording.name: recording for recording in map(decode, dataset["train"])}
    assert found.keys() == {"piece0", "piece1", "piece2"}
    for recording in RECORDINGS[:3]:
        assert_recordings_equal(found[recording.name], recording)
        assert len(found[recording.name].stems) == len(recording.stems)
        for one, other in zip(found[recording.name].stems, recording.stems, strict=True):
            assert_recordings_equal(one, other)
    assert decode(dataset["test"][0]).name == "piece3"


def test_reading_does_not_import_tensorflow(prepared_data_dir):
    program = (
        "import sys; from spectrodiff.data.dataset import open_dataset; "
        f"open_dataset({str(prepared_data_dir)!r}, 'ours')['train'][0]; print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_record_lengths_are_cached_in_a_file(writable_copy):
    records = open_dataset(writable_copy, "ours")["train"]
    lengths = {decode(record).name: len(decode(record).audio) for record in records}
    assert lengths == {recording.name: len(recording.audio) for recording in RECORDINGS[:3]}
    assert records.samples.tolist() == [lengths[decode(record).name] for record in records]

    path = writable_copy / "ours" / "1.0.0" / "lengths-train.json"
    assert json.loads(path.read_text()) == records.samples.tolist()
    path.write_text("[1, 2, 3]")
    assert open_dataset(writable_copy, "ours")["train"].samples.tolist() == [1, 2, 3]
    for damaged in ("[1, 2]", "[1, 2, ", "{}", '["a", "b", "c"]'):
        path.write_text(damaged)
        assert open_dataset(writable_copy, "ours")["train"].samples.tolist() == records.samples.tolist()
        assert json.loads(path.read_text()) == records.samples.tolist()


def test_record_lengths_work_without_write_permission(writable_copy, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as root has permission everywhere
    assert len(open_dataset(writable_copy, "ours")["train"].samples) == 3
    assert not (writable_copy / "ours" / "1.0.0" / "lengths-train.json").exists()


def test_newest_or_requested_version_is_opened(tmp_path):
    for version, recording in (("1.9.0", RECORDINGS[0]), ("1.10.0", RECORDINGS[1])):
        folder = write_dataset(tmp_path / version, "ours", {"train": [recording]})
        shutil.copytree(folder, tmp_path / "ours" / version)
    (tmp_path / "ours" / "incomplete.ABC_2.0.0").mkdir()
    assert decode(open_dataset(tmp_path, "ours")["train"][0]).name == "piece1"
    assert decode(open_dataset(tmp_path, "ours/1.9.0")["train"][0]).name == "piece0"


def test_missing_dataset_lists_the_existing_ones(writable_copy):
    (writable_copy / "half" / "incomplete.ABC_1.0.0").mkdir(parents=True)
    for name in ("theirs", "half", "ours/2.0.0"):
        with pytest.raises(InputError) as error:
            open_dataset(writable_copy, name)
        command = f"`spectrodiff prepare {name.split('/')[0]} --data_dir {writable_copy}`"
        assert re.search(rf"{name!r} in {writable_copy} .*\bours\b.*{command}", str(error.value))
    with pytest.raises(InputError, match=r"'ours' in /nope "):
        open_dataset("/nope", "ours")


def test_missing_split_lists_the_existing_ones(prepared_data_dir):
    with pytest.raises(InputError, match=r"ours/1\.0\.0 .*'validation'.*train, test"):
        open_dataset(prepared_data_dir, "ours")["validation"]


def test_dataset_with_other_features_raises_input_error(writable_copy):
    features = writable_copy / "ours" / "1.0.0" / "features.json"
    features.write_text(features.read_text().replace('"notes"', '"labels"'))
    with pytest.raises(InputError, match=r"ours/1\.0\.0 .*\bnotes$"):
        open_dataset(writable_copy, "ours")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_raises_input_error(writable_copy, name):
    (writable_copy / "ours" / "1.0.0" / name).write_text("{")
    with pytest.raises(InputError, match=r"ours/1\.0\.0: "):
        open_dataset(writable_copy, "ours")


def test_missing_shard_is_named(writable_copy):
    (shard,) = (writable_copy / "ours" / "1.0.0").glob("*-test.array_record-*")
    shard.unlink()
    dataset = open_dataset(writable_copy, "ours")
    assert len(dataset["train"]) == 3
    with pytest.raises(InputError, match=f"{shard.name} "):
        dataset["test"]


@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_shard_raises_input_error(writable_copy, kept):
    (shard,) = (writable_copy / "ours" / "1.0.0").glob("*-train.array_record-*")
    content = shard.read_bytes()
    shard.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r"ours/1\.0\.0"):
        list(open_dataset(writable_copy, "ours")["train"])


def test_missing_tfds_raises_input_error(prepared_data_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(InputError, match=r'pip install "spectrodiff\[data\]"'):
        open_dataset(prepared_data_dir, "ours")
