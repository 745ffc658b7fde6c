"""The flags of `train` that a config does not have: several processes, and a window of steps to trace."""

import gin
import optax
import pytest
from processes import finish, free_port, start_python

from spectrodiff.cli import main
from spectrodiff.commands.train import read_config
from spectrodiff.data.resident import ResidentLoader
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.training import loop, optimizers
from spectrodiff.training.adaptation import Adaptation
from spectrodiff.training.evaluators import HeldoutLoss, MelError
from spectrodiff.training.spectrogram import SpectrogramTask

TINY = ["train", "--gin_file", "configs/tiny.gin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:9", "--process", "0"], "--processes is missing: a process of several needs all"),
        (
            ["--coordinator", "here", "--processes", "2", "--process", "0"],
            "'here' is no address, such as 10.0.0.1:1234",
        ),
        (["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "2"], "cannot join the other processes: "),
        (["--distributed"], "cannot join the other processes: "),  # why, depends on what ran before
        (["--profile", "30:20"], "'30:20' is no range of steps, such as 20:30"),
    ],
)
def test_what_cannot_be(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([*TINY, "--workdir", str(tmp_path / "run"), *options])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectrodiff")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_the_window_to_trace_reaches_the_loop(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "train", lambda workdir, **options: given.update(options, workdir=workdir))
    main([*TINY, "--workdir", str(tmp_path), "--profile", "20:30"])
    assert (given["workdir"], given["profile"]) == (str(tmp_path), (20, 30))


def test_a_run_is_described_by_all_that_it_uses_and_what_nothing_uses_is_named(tmp_path, monkeypatch, capsys):
    """A scoped binding and one over several lines are names as well; comments and values are none."""
    said = []

    def train(workdir, *, describe, **_):
        optimizers.muon()
        with gin.config_scope("inner"):
            optimizers.adafactor()
        said.append(describe())

    monkeypatch.setattr(loop, "train", train)
    config = tmp_path / "mine.gin"
    config.write_text(
        "include 'configs/tiny.gin'\n# lora.scale = 1.0\nadafactor.warmup = 5\nadamw.warmup = 3\n"
        "some/only.pattern = \\\n    'lora.rank = 1'\nmuon.warmup = 9\n"
    )
    main(["train", "--gin_file", str(config), "--workdir", str(tmp_path / "run")])
    (unused,) = [line for line in capsys.readouterr().out.splitlines() if "nothing uses" in line]
    names = set(unused.removeprefix("of the config nothing uses ").split(", "))
    assert names >= {"adamw.warmup", "some/only.pattern", "train.steps"}  # `train` itself was not called
    assert not names & {"muon.warmup", "adafactor.warmup", "lora.scale", "lora.rank"}
    assert "muon.warmup = 9\n" in said[0]
    assert "adamw.warmup" not in said[0]


JOINED = """
import sys, jax
from spectrodiff.cli import main
from spectrodiff.training import loop
loop.train = lambda workdir, **options: print("process", jax.process_index(), "of", jax.process_count(), "for", workdir)
main(sys.argv[1:])
"""


@pytest.mark.trial
def test_two_processes_join_by_their_flags_before_anything_trains():
    options = [*TINY, "--workdir", "runs/two", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
    two = [start_python("-c", JOINED, *options, "--process", i) for i in (0, 1)]
    for i, process in enumerate(two):
        assert f"process {i} of 2 for runs/two" in finish(process)


def test_one_config_after_another_keeps_nothing_of_the_first():
    read_config(["configs/demo.gin"], [])
    alone = gin.config_str()
    read_config(["configs/tiny.gin"], ["train.seed = 3", "adamw.warmup = 7"])
    assert gin.query_parameter("train.seed") == 3
    read_config(["configs/demo.gin"], [])
    assert gin.config_str() == alone


def test_after_a_config_that_cannot_be_another_can():
    with pytest.raises(InputError, match=r"binds train\.steps to 'many'"):
        read_config(["configs/tiny.gin"], ["train.steps = 'many'"])
    read_config(["configs/tiny.gin"], [])
    assert gin.query_parameter("train.steps") == 20


@pytest.mark.parametrize("name", ["tiny.gin", "configs/tiny.gin"])
def test_packaged_configs_are_found_from_anywhere_unless_there_is_a_file_of_that_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    read_config([name], [])
    assert gin.query_parameter("train.steps") == 20
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text("include 'demo.gin'\ntrain.steps = 7\n")
    read_config([name], [])
    assert gin.query_parameter("train.steps") == 7


def test_includes_are_found_where_one_stands_now(tmp_path, monkeypatch):
    """Not where one stood when the first config was read; and in the checkout."""
    for place, seed in (("first", 1), ("second", 2)):
        (tmp_path / place / "configs").mkdir(parents=True)
        (tmp_path / place / "mine.gin").write_text("include 'configs/other.gin'  # which is here\n")
        (tmp_path / place / "configs" / "other.gin").write_text(f"include 'configs/tiny.gin'\ntrain.seed = {seed}\n")
        monkeypatch.chdir(tmp_path / place)
        read_config(["mine.gin"], [])
        assert gin.query_parameter("train.seed") == seed
        assert gin.query_parameter("ModelConfig.width") == 32


def test_a_config_that_includes_itself_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("include 'mine.gin'\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"mine\.gin includes itself$"):
        read_config(["mine.gin"], [])


def test_what_is_wrong_is_said_with_its_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("include 'configs/tiny.gin'\n\ntrain.seed = 1\ntrain.colour = 2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'colour'.*/mine\.gin\", line 4"):
        read_config(["mine.gin"], [])
    (tmp_path / "mine.gin").write_text("include 'configs/nope.gin'\n")
    with pytest.raises(InputError, match=r"^no config configs/nope\.gin\b.*mine\.gin\b.*\bdemo\.gin\b"):
        read_config(["mine.gin"], [])


def test_a_later_binding_wins_over_an_include_before_it_and_loses_to_one_after(tmp_path, monkeypatch):
    (tmp_path / "one.gin").write_text("train.seed = 1\n")
    (tmp_path / "mine.gin").write_text(
        "train.seed = 2\ninclude 'one.gin'\ninclude 'configs/tiny.gin'\nmuon.warmup = 9\n"
    )
    monkeypatch.chdir(tmp_path)
    read_config(["mine.gin"], [])
    assert (gin.query_parameter("train.seed"), gin.query_parameter("muon.warmup")) == (1, 9)


def test_parentheses_that_are_left_out_are_filled_in():
    plain = ["train.optimizer = @adamw", "train.task = @SpectrogramTask", "train.adaptation = @everything"]
    read_config(["configs/tiny.gin"], [*plain, "SpectrogramConfig.model = @ModelConfig", "adamw.learning_rate = 0.5"])
    train = gin.get_bindings("train")
    assert isinstance(train["optimizer"], optax.GradientTransformation)
    assert isinstance(train["task"], SpectrogramTask)
    assert isinstance(train["adaptation"], Adaptation)
    assert train["task"].config.model.width == 32
    assert "train.optimizer = @adamw()" in gin.config_str()


def test_a_parameter_that_takes_a_function_gets_it():
    read_config(["configs/melgan_gan.gin"], [])
    losses = gin.get_bindings("AdversarialTask")["verdict_loss"]
    assert losses.__name__ == "relativistic"


def test_evaluators_loaders_and_decoders_are_bound_by_name():
    read_config(
        ["configs/tiny.gin"],
        [
            "train.evaluators = (@MelError(), @HeldoutLoss)",
            "HeldoutLoss.every = 7",
            "SpectrogramTask.loader = @ResidentLoader()",
            "ResidentLoader.stride = 16",
            "SpectrogramConfig.decoder = @AutoregressiveConfig()",
            "AutoregressiveConfig.components = 3",
        ],
    )
    train = gin.get_bindings("train")
    assert train["evaluators"] == (MelError(sampling={"steps": 2}), HeldoutLoss(every=7))
    assert train["task"].loader == ResidentLoader(stride=16)
    assert train["task"].config.decoder == AutoregressiveConfig(mean=0.0, std=1.0, components=3)
