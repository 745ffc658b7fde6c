"""Weights of a run, taken out while it is going on or after."""

import json
import re

import gin
import numpy as np
import pytest
from processes import losses
from safetensors.numpy import load_file

from spectrodiff.cli import main
from spectrodiff.synthesizer import Synthesizer

pytestmark = pytest.mark.trial


def export(*arguments):
    gin.clear_config()  # each command is a process of its own, elsewhere
    main(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """The workdir of a run from the command line, of three steps, all of them kept."""
    workdir = tmp_path_factory.mktemp("run")
    bindings = [f"Mixture.data_dir = '{corpus}'", "ModelConfig.dtype = 'bfloat16'", "ModelConfig.remat = True"]
    bindings += ["train.steps = 3", "train.checkpoint_every = 1", "train.checkpoints_kept = 3", "train.log_every = 1"]
    options = [f"--gin_param={binding}" for binding in bindings]
    gin.clear_config()
    main(["train", "--gin_file", "configs/tiny.gin", "--workdir", str(workdir), *options])
    return workdir


def arrays(folder):
    return load_file(folder / "spectrogram.safetensors")


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first | second)


def test_a_run_leaves_its_config(run):
    config = (run / "config.gin").read_text()
    assert "train.steps = 3\n" in config
    assert "ModelConfig.width = 32\n" in config  # of what it includes
    assert sorted(losses(run)) == [1, 2, 3]


def test_the_newest_average_is_what_the_run_itself_exports(run, tmp_path, capsys):
    export(run, tmp_path / "new")
    assert capsys.readouterr().out == f"step 3: weights are in {tmp_path / 'new'}\n"
    assert same(arrays(tmp_path / "new"), arrays(run / "export"))
    description = json.loads((tmp_path / "new" / "spectrogram.json").read_text())
    assert description["card"] == {"steps": 3, "seed": 0, "weights": "average"}
    model = description["config"]["model"]
    assert (model["dtype"], model["remat"]) == ("float32", False)
    Synthesizer.from_pretrained(tmp_path / "new")


def test_other_steps_and_the_last_parameters(run, tmp_path):
    export(run, tmp_path / "earlier", "--step", "2")
    export(run, tmp_path / "last", "--last")
    found = [arrays(folder) for folder in (run / "export", tmp_path / "earlier", tmp_path / "last")]
    assert not same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "new"], r"nowhere .*config\.gin"),
        (["RUN", "new", "--step", "7"], r"step 7 .*1, 2, 3"),
    ],
)
def test_what_is_not_there(run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        export(*(run if word == "RUN" else word for word in arguments))
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectrodiff: ")
    assert re.search(message, line)
    assert not (tmp_path / "new").exists()
