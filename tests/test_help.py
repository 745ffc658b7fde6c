"""The texts of `--help`, shell completion, light imports, and the public names of the package."""

import argparse
import importlib
import shlex
import subprocess
import sys

import pytest
from parsers import parsers

from spectrodiff.audio.loudness import LEVELS
from spectrodiff.cli import main, make_parser
from spectrodiff.data.builders import CORPORA, corpus

ALL = list(parsers(make_parser()))


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_help_begins_with_examples_that_parse(parser):
    heading, *lines = parser.format_help().split("\n\n")[0].splitlines()
    assert heading in ("example:", "examples:")
    assert lines
    for line in lines:
        command, *arguments = shlex.split(line)
        assert command == "spectrodiff"
        parsed = make_parser().parse_args(arguments)
        assert f"spectrodiff {parsed.command}".startswith(" ".join(parser.prog.split()[:2]))


@pytest.mark.parametrize("parser", ALL, ids=lambda parser: parser.prog)
def test_option_groups_are_short(parser):
    """At most eight options are visible in each."""
    for group in parser._action_groups:
        assert len([action for action in group._group_actions if action.help != argparse.SUPPRESS]) <= 8


@pytest.mark.parametrize("name", [name for name in CORPORA if name != "rendered"])
def test_prepare_help_names_corpora_and_their_homepages(name, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    text = capsys.readouterr().out
    assert f"\n{name}\n" in text
    assert corpus(name).homepage in text


def test_level_choices_equal_the_supported_levels():
    (synthesize,) = (parser for parser in ALL if parser.prog == "spectrodiff synthesize")
    (level,) = (action for action in synthesize._actions if action.option_strings == ["--level"])
    assert tuple(level.choices) == LEVELS


def test_parser_and_help_import_no_heavy_package():
    program = "import sys; from spectrodiff.cli import make_parser; make_parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "spectrodiff.commands.train" in loaded
    assert {"jax", "numpy", "flax", "scipy", "soundfile", "note_seq"}.isdisjoint(loaded)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_has_commands_options_and_corpora(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as exit:
        main(["--print_completion", shell])
    assert not exit.value.code
    script = capsys.readouterr().out
    assert all(word in script for word in ("synthesize", "doctor", "on_overflow", "guitarset"))


def test_missing_shtab_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as exit:
        main(["--print_completion", "bash"])
    assert exit.value.code == 2
    assert "shtab" in capsys.readouterr().err


@pytest.mark.parametrize("name", importlib.import_module("spectrodiff").__all__)
def test_public_names_are_importable(name):
    module = importlib.import_module("spectrodiff")
    assert getattr(module, name).__name__ == name
    assert name in dir(module)


def test_unknown_attribute_raises_attribute_error():
    with pytest.raises(AttributeError, match="nope"):
        getattr(importlib.import_module("spectrodiff"), "no" + "pe")
