"""The recipe train_demo.py: its commands, their training times, and resumption by later calls."""

import importlib.util
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import gin
import jax
import pytest
from flax import nnx
from safetensors.numpy import load_file

from spectrodiff.training import vocoder
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.griffin_lim import GriffinLim

PATH = pathlib.Path(__file__).parent.parent / "recipes" / "train_demo.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train_demo", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def commands(script, monkeypatch):
    """The commands run, by a stub that uses half a minute of training time and writes a log and an export folder."""
    ran = []

    def run(arguments, spent=None):
        ran.append([*map(str, arguments)])
        if spent is not None:
            spent.add(30.0)
            workdir = pathlib.Path(ran[-1][ran[-1].index("--workdir") + 1])
            (workdir / "export").mkdir(parents=True, exist_ok=True)
            (workdir / "log.jsonl").write_text('{"step": 7, "loss": 3.0}\n{"step": 7, "heldout_mel": 0.25}\n')

    monkeypatch.setattr(script, "run", run)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return ran


def arguments(tmp_path, *others):
    return ["--out", str(tmp_path / "out"), "--data_dir", str(tmp_path / "data"), *others]


def minutes_of(command):
    (found,) = (part for part in command if part.startswith("train.stop_after_minutes"))
    return float(found.split(" = ")[1])


def test_training_minutes_are_counted_over_all_calls(script, commands, tmp_path, capsys):
    options = arguments(tmp_path, "--configs", "tiny", "melgan", "melgan_gan", "--minutes", "1", "0.5", "2")
    script.main(options)
    prepare, *training = commands
    assert prepare[1:4] == ["spectrodiff", "prepare", "rendered"]
    assert [minutes_of(command) for command in training] == [1.0, 0.5, 2.0]
    assert [any(part.startswith("train.init_from") for part in command) for command in training] == [False, False, True]
    assert "melgan_gan: step 7: heldout_mel 0.250" in capsys.readouterr().out
    (tmp_path / "data" / "rendered" / "1.0.0").mkdir(parents=True)
    (tmp_path / "data" / "rendered" / "1.0.0" / "dataset_info.json").touch()
    commands.clear()
    script.main(options)
    assert [minutes_of(command) for command in commands] == [0.5, 1.5]  # the corpus exists, and melgan is finished
    assert json.loads((tmp_path / "out" / "minutes.json").read_text()) == {
        "tiny": 1.0,
        "melgan": 0.5,
        "melgan_gan": 1.0,
    }


def test_carried_folder_is_copied_and_continued_once(script, commands, tmp_path):
    carried = tmp_path / "carried"
    (carried / "tiny" / "checkpoints").mkdir(parents=True)
    (carried / "minutes.json").write_text('{"tiny": 4.0}')
    options = arguments(tmp_path, "--configs", "tiny", "--minutes", "5", "--carried", str(carried))
    script.main(options)
    script.main(options)
    assert (tmp_path / "out" / "tiny" / "checkpoints").is_dir()
    assert [minutes_of(command) for command in commands if "--workdir" in command] == [1.0, 0.5]
    assert (carried / "minutes.json").read_text() == '{"tiny": 4.0}'


def test_number_of_minutes_must_match_the_configs(script, commands, tmp_path):
    with pytest.raises(SystemExit) as ended:
        script.main(arguments(tmp_path, "--configs", "tiny", "--minutes", "1", "2"))
    assert ended.value.code == 2
    assert not commands


def test_failing_command_ends_the_script_and_its_time_counts(script, tmp_path):
    spent = script.Spent(tmp_path / "minutes.json", "tiny")
    with pytest.raises(SystemExit) as ended:
        script.run(["-c", "import sys; sys.exit(3)"], spent)
    assert ended.value.code == 3
    assert script.Spent(tmp_path / "minutes.json", "tiny").minutes == spent.minutes > 0.0


@pytest.mark.parametrize("config", ["demo_wide", "melgan", "melgan_gan"])
def test_configs_can_compute_their_loss_from_resident_batches(script, corpus, tmp_path, monkeypatch, config):
    monkeypatch.setattr(vocoder, "find_griffin_lim", lambda refiner: GriffinLim(iterations=1, solver_iterations=1))
    quick = ["SpectrogramTask.batch_size = 2", "ResidentLoader.workers = 1"]
    folders = [f"Mixture.data_dir = '{corpus}'"]
    folders += [f"{task}.excitation_dir = '{tmp_path}'" for task in ("VocoderTask", "AdversarialTask")]
    read_config([f"configs/{config}.gin"], [*script.BINDINGS, *quick, *folders])
    task = gin.get_bindings("train")["task"]

    def loss(batch):
        model = task.build(nnx.Rngs(0))
        return task.loss(model, batch, jax.random.key(0), Others(lambda: model, {}))[0]

    assert jax.eval_shape(loss, next(task.batches(seed=0))).shape == ()


@pytest.mark.trial
def test_interrupted_script_finishes_when_called_again(corpus, tmp_path):
    """This really trains the smallest config on a prepared corpus."""
    command = [
        sys.executable,
        PATH,
        "--out",
        tmp_path / "out",
        "--data_dir",
        corpus,
        "--configs",
        "tiny",
        "--minutes",
        "60",
    ]
    bindings = ["train.log_every = 1", "train.evaluators = (@HeldoutLoss(),)", "SpectrogramTask.heldout_windows = 1"]
    command += [part for one in bindings for part in ("--gin_param", one)]
    process = subprocess.Popen(
        [*command, "--export_minutes", "1e-6"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    exported = tmp_path / "out" / "tiny" / "export" / "spectrogram.json"
    while not exported.exists() and process.poll() is None:
        time.sleep(0.1)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert exported.exists(), output[-3000:]
    finished = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert re.search(r" step [1-9]\d*$", finished.stdout, re.MULTILINE)
    assert "tiny: step 20: heldout_loss" in finished.stdout
    assert load_file(exported.with_suffix(".safetensors"))
