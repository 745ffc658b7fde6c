"""`spectrodiff export`: weights from the checkpoints of a run."""

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
    gin.clear_config()  # as if in a process of its own
    main(["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained_run(corpus, tmp_path_factory):
    """The workdir of a run of three steps from the command line, with a checkpoint of each."""
    workdir = tmp_path_factory.mktemp("run")
    bindings = [f"Mixture.data_dir = '{corpus}'", "ModelConfig.dtype = 'bfloat16'", "ModelConfig.remat = True"]
    bindings += ["train.steps = 3", "train.checkpoint_every = 1", "train.checkpoints_kept = 3", "train.log_every = 1"]
    options = [f"--gin_param={binding}" for binding in bindings]
    gin.clear_config()
    main(["train", "--gin_file", "configs/tiny.gin", "--workdir", str(workdir), *options])
    return workdir


def load_arrays(folder):
    return load_file(folder / "spectrogram.safetensors")


def arrays_equal(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first | second)


def test_run_saves_its_config_and_log(trained_run):
    config = (trained_run / "config.gin").read_text()
    assert "train.steps = 3\n" in config
    assert "ModelConfig.width = 32\n" in config  # from an included file
    assert sorted(losses(trained_run)) == [1, 2, 3]


def test_default_export_equals_the_export_of_the_run(trained_run, tmp_path, capsys):
    export(trained_run, tmp_path / "new")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("step 3: ")
    assert line.endswith(f" {tmp_path / 'new'}")
    assert arrays_equal(load_arrays(tmp_path / "new"), load_arrays(trained_run / "export"))
    description = json.loads((tmp_path / "new" / "spectrogram.json").read_text())
    assert description["card"] == {"steps": 3, "seed": 0, "weights": "average"}
    model = description["config"]["model"]
    assert (model["dtype"], model["remat"]) == ("float32", False)
    Synthesizer.from_pretrained(tmp_path / "new")


def test_export_of_earlier_steps_and_unaveraged_parameters(trained_run, tmp_path):
    export(trained_run, tmp_path / "earlier", "--step", "2")
    export(trained_run, tmp_path / "last", "--last")
    found = [load_arrays(folder) for folder in (trained_run / "export", tmp_path / "earlier", tmp_path / "last")]
    assert not arrays_equal(found[0], found[1])
    assert not arrays_equal(found[0], found[2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "new"], r"nowhere .*config\.gin"),
        (["RUN", "new", "--step", "7"], r"step 7 .*1, 2, 3"),
    ],
)
def test_missing_run_or_step_is_a_one_line_error(trained_run, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        export(*(trained_run if word == "RUN" else word for word in arguments))
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectrodiff: ")
    assert re.search(message, line)
    assert not (tmp_path / "new").exists()
