import pathlib

import pytest

from spectrodiff.errors import InputError
from spectrodiff.pretrained import hub


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A package that comes with two checkpoints."""
    for name in ("demo", "piano"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "spectrogram.json").touch()
    (tmp_path / "weights" / "README.md").touch()
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


def test_a_name_is_one_of_the_packages(weights):
    assert hub.find_checkpoint("demo") == weights / "demo"


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_folder_is_itself(weights, kind):
    (weights.parent / "export").mkdir()
    assert hub.find_checkpoint(kind("export")) == pathlib.Path("export")


def test_a_name_goes_before_a_folder_called_alike(weights):
    (weights.parent / "demo").mkdir()
    assert hub.find_checkpoint("demo") == weights / "demo"
    assert hub.find_checkpoint("./demo") == pathlib.Path("demo")


@pytest.mark.parametrize("name", ["large", "README.md", "weights/README.md", "demo/nope"])
def test_what_is_neither_is_refused_with_the_names_there_are(weights, name):
    with pytest.raises(InputError, match=f"^no checkpoint '{name}': give one of demo, piano, or a folder"):
        hub.find_checkpoint(name)


def test_a_package_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "none")
    with pytest.raises(InputError, match=r"^no checkpoint 'demo': give a folder"):
        hub.find_checkpoint("demo")
