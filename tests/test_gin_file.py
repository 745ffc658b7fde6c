"""Gin files as gin itself writes them, and as people do."""

import pytest

from spectrodiff.errors import InputError
from spectrodiff.pretrained.gin_file import read_bindings


@pytest.fixture
def bindings(tmp_path):
    def read(text):
        (tmp_path / "config.gin").write_text(text)
        return read_bindings(tmp_path / "config.gin")

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b.T5Config.x = 3", 3),
        ("T5Config.x = \\\n    3", 3),  # how gin wraps long ones
        ("T5Config.x = (3)  # three", 3),
        ("T5Config:\n  # three\n  x = 3\n", 3),
        ("T5Config.x = 'it\\'s'", "it's"),
        ("T5Config.x = ('gelu', \n 'linear')", ("gelu", "linear")),
        ("N = 3\nT5Config.x = %N", 3),
        ("N = %M\nM = 3\nT5Config.x = %N", 3),
        ("T5Config.x = 3\nT5Config.x = 4", 4),
        ("T5Config.x = 3\nscope/T5Config.x = 4", 3),
        ("T5Config.x = 3\nOther.x = 4", 3),
        ("import os\nfrom __gin__ import dynamic_registration\nT5Config.x = 3", 3),
    ],
)
def test_values_are_read(bindings, text, value):
    assert bindings(text)["T5Config.x"] == value


@pytest.mark.parametrize("value", ["%NOPE", "@os.remove", "@os.remove()"])
def test_references_stay_text(bindings, value):
    assert repr(bindings(f"T5Config.x = {value}")["T5Config.x"]) == value


def test_macros_in_a_circle_end(bindings):
    assert repr(bindings("A = %B\nB = %A\nT5Config.x = %A")["T5Config.x"]) in ("%A", "%B")


@pytest.mark.parametrize(
    "text", ["x", "x =", "x = (", "T5Config:\nx = 3", "  x = [3", "x = y z", "x = '", "\0", "x = " + "(" * 5000, "?"]
)
def test_what_is_no_gin(bindings, text):
    with pytest.raises(InputError, match=r"^cannot read .*config\.gin: .+") as error:
        bindings(text)
    assert "\n" not in str(error.value)
