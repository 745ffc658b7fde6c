"""Our reader of gin files, on syntax as gin writes it and as people do."""

import pytest

from spectrodiff.errors import InputError
from spectrodiff.pretrained.gin_file import read_bindings


@pytest.fixture
def read_text(tmp_path):
    def read(text):
        (tmp_path / "config.gin").write_text(text)
        return read_bindings(tmp_path / "config.gin")

    return read


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.b.T5Config.x = 3", 3),
        ("T5Config.x = \\\n    3", 3),  # how gin wraps long lines
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
def test_bound_values_are_read(read_text, text, value):
    assert read_text(text)["T5Config.x"] == value


@pytest.mark.parametrize("value", ["%NOPE", "@os.remove", "@os.remove()"])
def test_references_are_kept_as_text(read_text, value):
    assert repr(read_text(f"T5Config.x = {value}")["T5Config.x"]) == value


def test_circular_macros_terminate(read_text):
    assert repr(read_text("A = %B\nB = %A\nT5Config.x = %A")["T5Config.x"]) in ("%A", "%B")


@pytest.mark.parametrize(
    "text", ["x", "x =", "x = (", "T5Config:\nx = 3", "  x = [3", "x = y z", "x = '", "\0", "x = " + "(" * 5000, "?"]
)
def test_invalid_gin_raises_input_error(read_text, text):
    with pytest.raises(InputError, match=r"config\.gin: .+") as error:
        read_text(text)
    assert "\n" not in str(error.value)
