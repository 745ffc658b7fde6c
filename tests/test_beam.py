"""Preparation with Apache Beam equals a plain run. Needs pip install "spectrodiff[beam]", and is skipped without."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from toy_corpus import Toy, write_toys

from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.dataset import open_dataset
from spectrodiff.errors import InputError

TESTS = pathlib.Path(__file__).parent
TWO_PROCESSES = "--direct_num_workers=2 --direct_running_mode=multi_processing"


def records(data_dir):
    """All records by split, in order."""
    dataset = open_dataset(data_dir, "toy")
    return {split: list(dataset[split]) for split in dataset.splits}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for split, ours in one.items():
        theirs = other[split]
        assert [record["name"] for record in ours] == [record["name"] for record in theirs]
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_equal(our, their)


def test_missing_beam_raises_input_error(tmp_path, monkeypatch):
    for name in ("apache_beam", "apache_beam.options", "apache_beam.options.pipeline_options"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"--beam .*spectrodiff\[beam\]"):
        prepare(Toy(), write_toys(tmp_path / "toys"), tmp_path, beam_options="")


@pytest.mark.slow
def test_beam_workers_prepare_the_same_dataset_as_a_plain_run(tmp_path):
    pytest.importorskip("apache_beam")
    pids = tmp_path / "pids"
    pids.mkdir()
    toys = write_toys(tmp_path / "toys", 30, bad=(7,))
    plain = prepare(Toy(), toys, tmp_path / "plain", workers=1, skip_bad=True)
    program = (
        "import sys; from spectrodiff.data.builders.preparation import prepare; from toy_corpus import Toy;"
        "prepare(Toy(), *sys.argv[1:3], skip_bad=True, beam_options=sys.argv[3])"
    )
    environment = os.environ | {"PIDS": str(pids)}
    command = [sys.executable, "-c", program, toys, tmp_path / "beam", TWO_PROCESSES]
    run = subprocess.run(command, cwd=TESTS, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert len(list(pids.iterdir())) == 2
    assert_same(records(tmp_path / "beam"), records(tmp_path / "plain"))
    beam = tmp_path / "beam" / "toy" / "1.0.0"
    assert {path.name for path in beam.iterdir()} == {path.name for path in plain.iterdir()}
    for name in ("metadata.json", "features.json"):
        assert json.loads((beam / name).read_text()) == json.loads((plain / name).read_text())
    assert json.loads((beam / "metadata.json").read_text())["skipped"].keys() == {"toy07"}
    assert [path.name for path in (tmp_path / "beam").iterdir()] == ["toy"]


@pytest.mark.slow
@pytest.mark.parametrize("options", ["", TWO_PROCESSES])
def test_unreadable_piece_stops_beam_with_input_error(tmp_path, options, monkeypatch):
    pytest.importorskip("apache_beam")
    monkeypatch.setenv("PYTHONPATH", str(TESTS))  # inherited by the workers
    toys = write_toys(tmp_path / "toys", bad=(4,))
    with pytest.raises(InputError, match=r"toy04\.toy .*--skip_bad") as error:
        prepare(Toy(), toys, tmp_path, beam_options=options)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "toy").exists()
