"""`spectrodiff train`: its options for several processes and for profiling, and reading of gin configs."""

import gin
import optax
import pytest
from processes import finish, free_port, start_python

from spectrodiff.cli import main
from spectrodiff.data.resident import ResidentLoader
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.training import loop, optimizers
from spectrodiff.training.adaptation import Adaptation
from spectrodiff.training.evaluators import HeldoutLoss, MelError
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.spectrogram import SpectrogramTask

TINY = ["train", "--gin_file", "configs/tiny.gin"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "127.0.0.1:9", "--process", "0"], "--processes "),
        (
            ["--coordinator", "here", "--processes", "2", "--process", "0"],
            "'here' ",
        ),
        (["--coordinator", "127.0.0.1:9", "--processes", "2", "--process", "2"], " processes: "),
        (["--distributed"], " processes: "),  # the reason depends on earlier tests
        (["--profile", "30:20"], "'30:20' "),
    ],
)
def test_invalid_options_print_one_error_line(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([*TINY, "--workdir", str(tmp_path / "run"), *options])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("spectrodiff")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_profile_option_is_passed_to_the_loop(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(loop, "train", lambda workdir, **options: given.update(options, workdir=workdir))
    main([*TINY, "--workdir", str(tmp_path), "--profile", "20:30"])
    assert (given["workdir"], given["profile"]) == (str(tmp_path), (20, 30))


def test_unused_bindings_are_reported_and_used_ones_described(tmp_path, monkeypatch, capsys):
    """Scoped and multi-line bindings are reported too; names in comments and values are not."""
    descriptions = []

    def train(workdir, *, describe, **_):
        optimizers.muon()
        with gin.config_scope("inner"):
            optimizers.adafactor()
        descriptions.append(describe())

    monkeypatch.setattr(loop, "train", train)
    config = tmp_path / "mine.gin"
    config.write_text(
        "include 'configs/tiny.gin'\n# lora.scale = 1.0\nadafactor.warmup = 5\nadamw.warmup = 3\n"
        "some/only.pattern = \\\n    'lora.rank = 1'\nmuon.warmup = 9\n"
    )
    main(["train", "--gin_file", str(config), "--workdir", str(tmp_path / "run")])
    (unused,) = [line for line in capsys.readouterr().out.splitlines() if "adamw.warmup" in line]
    names = set(unused.replace(",", "").split())
    assert names >= {"adamw.warmup", "some/only.pattern", "train.steps"}  # `train` itself was not called
    assert not names & {"muon.warmup", "adafactor.warmup", "lora.scale", "lora.rank"}
    assert "muon.warmup = 9\n" in descriptions[0]
    assert "adamw.warmup" not in descriptions[0]


PRINT_PROCESS_INDEX = """
import sys, jax
from spectrodiff.cli import main
from spectrodiff.training import loop
loop.train = lambda workdir, **options: print("process", jax.process_index(), "of", jax.process_count(), "for", workdir)
main(sys.argv[1:])
"""


@pytest.mark.trial
def test_two_processes_join_by_their_options():
    options = [*TINY, "--workdir", "runs/two", "--coordinator", f"127.0.0.1:{free_port()}", "--processes", 2]
    two = [start_python("-c", PRINT_PROCESS_INDEX, *options, "--process", i) for i in (0, 1)]
    for i, process in enumerate(two):
        assert f"process {i} of 2 for runs/two" in finish(process)


def test_reading_a_config_clears_the_previous_one():
    read_config(["configs/demo.gin"], [])
    alone = gin.config_str()
    read_config(["configs/tiny.gin"], ["train.seed = 3", "adamw.warmup = 7"])
    assert gin.query_parameter("train.seed") == 3
    read_config(["configs/demo.gin"], [])
    assert gin.config_str() == alone


def test_config_can_be_read_after_an_invalid_one():
    with pytest.raises(InputError, match=r"train\.steps .*'many'"):
        read_config(["configs/tiny.gin"], ["train.steps = 'many'"])
    read_config(["configs/tiny.gin"], [])
    assert gin.query_parameter("train.steps") == 20


@pytest.mark.parametrize("name", ["tiny.gin", "configs/tiny.gin"])
def test_local_config_takes_precedence_over_the_packaged_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    read_config([name], [])
    assert gin.query_parameter("train.steps") == 20
    (tmp_path / "configs").mkdir()
    (tmp_path / name).write_text("include 'demo.gin'\ntrain.steps = 7\n")
    read_config([name], [])
    assert gin.query_parameter("train.steps") == 7


def test_includes_are_relative_to_the_current_folder(tmp_path, monkeypatch):
    """They do not depend on the current folder of earlier reads; packaged configs are found too."""
    for place, seed in (("first", 1), ("second", 2)):
        (tmp_path / place / "configs").mkdir(parents=True)
        (tmp_path / place / "mine.gin").write_text("include 'configs/other.gin'  # a local file\n")
        (tmp_path / place / "configs" / "other.gin").write_text(f"include 'configs/tiny.gin'\ntrain.seed = {seed}\n")
        monkeypatch.chdir(tmp_path / place)
        read_config(["mine.gin"], [])
        assert gin.query_parameter("train.seed") == seed
        assert gin.query_parameter("ModelConfig.width") == 32


def test_config_that_includes_itself_raises_input_error(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("include 'mine.gin'\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"mine\.gin .*\bitself$"):
        read_config(["mine.gin"], [])


def test_config_errors_name_file_and_line(tmp_path, monkeypatch):
    (tmp_path / "mine.gin").write_text("include 'configs/tiny.gin'\n\ntrain.seed = 1\ntrain.colour = 2\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'colour'.*/mine\.gin\", line 4"):
        read_config(["mine.gin"], [])
    (tmp_path / "mine.gin").write_text("include 'configs/nope.gin'\n")
    with pytest.raises(InputError, match=r"\bconfigs/nope\.gin\b.*mine\.gin\b.*\bdemo\.gin\b"):
        read_config(["mine.gin"], [])


def test_later_bindings_and_includes_override_earlier_ones(tmp_path, monkeypatch):
    (tmp_path / "one.gin").write_text("train.seed = 1\n")
    (tmp_path / "mine.gin").write_text(
        "train.seed = 2\ninclude 'one.gin'\ninclude 'configs/tiny.gin'\nmuon.warmup = 9\n"
    )
    monkeypatch.chdir(tmp_path)
    read_config(["mine.gin"], [])
    assert (gin.query_parameter("train.seed"), gin.query_parameter("muon.warmup")) == (1, 9)


def test_missing_parentheses_in_references_are_added():
    plain = ["train.optimizer = @adamw", "train.task = @SpectrogramTask", "train.adaptation = @everything"]
    read_config(["configs/tiny.gin"], [*plain, "SpectrogramConfig.model = @ModelConfig", "adamw.learning_rate = 0.5"])
    train = gin.get_bindings("train")
    assert isinstance(train["optimizer"], optax.GradientTransformation)
    assert isinstance(train["task"], SpectrogramTask)
    assert isinstance(train["adaptation"], Adaptation)
    assert train["task"].config.model.width == 32
    assert "train.optimizer = @adamw()" in gin.config_str()


def test_function_parameters_are_bound_uncalled():
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
