import fnmatch
import pathlib
import sys
import types

import pytest
from inputs import PAPER
from weights import FORMATS, random_arrays, write_weights

from spectrodiff.config import TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained import hub
from spectrodiff.pretrained.formats import open_checkpoint


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


def test_the_folder_of_a_run_is_not_that_of_its_weights(weights):
    run = weights.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has not ended.*spectrodiff export \S+/run NEW$"):
        hub.find_checkpoint(run / "export")
    (run / "export").mkdir()
    assert hub.find_checkpoint(run / "export") == run / "export"
    with pytest.raises(InputError, match=r"its weights are in \S+/run/export$"):
        hub.find_checkpoint(run)


def test_a_name_goes_before_a_folder_called_alike(weights):
    (weights.parent / "demo").mkdir()
    assert hub.find_checkpoint("demo") == weights / "demo"
    assert hub.find_checkpoint("./demo") == pathlib.Path("demo")


@pytest.mark.parametrize("name", ["large", "README.md", "weights/README.md", "demo/nope"])
def test_what_is_neither_is_refused_with_the_names_there_are(weights, name):
    with pytest.raises(InputError, match=f"'{name}'.*demo, piano"):
        hub.find_checkpoint(name)


def test_a_package_without_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "none")
    with pytest.raises(InputError, match=r"^no checkpoint 'demo': give a folder"):
        hub.find_checkpoint("demo")


# ---- hf://owner/name

REPOSITORY = "hf://google/music-spectrogram-diffusion"
CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", PAPER.model.max_tokens), PAPER.model)


@pytest.fixture
def online(tmp_path, monkeypatch):
    """A hub whose one repository is the folder `there`; what is downloaded comes to `here`."""
    there, here = tmp_path / "there", tmp_path / "here"
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append(repository)
        for path in filter(pathlib.Path.is_file, there.rglob("*")):
            name = str(path.relative_to(there))
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):  # as huggingface_hub does
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes(path.read_bytes())
        return str(here)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    return types.SimpleNamespace(there=there, here=here, asked=asked)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_needed_of_a_repository_is_downloaded(online, kind):
    write_weights(online.there, kind, CONFIG, random_arrays(CONFIG))
    (online.there / "melgan").mkdir()
    (online.there / "melgan" / "model.onnx").touch()
    needed = {path.relative_to(online.there) for path in online.there.rglob("*") if path.is_file()}
    for unneeded in ("README.md", "song.mid", "decoder/flax_model.msgpack", "checkpoint_500000/state.decoder/0"):
        (online.there / unneeded).parent.mkdir(parents=True, exist_ok=True)
        (online.there / unneeded).touch()
    folder = hub.find_checkpoint(REPOSITORY)
    assert online.asked == ["google/music-spectrogram-diffusion"]
    found = open_checkpoint(folder)
    assert kind.startswith(found.format)
    assert found.onnx_vocoder is not None
    assert found.specs().keys() == found.arrays.keys()
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == needed


def test_pickles_are_downloaded_only_where_there_is_nothing_safer(online):
    write_weights(online.there, "diffusers", CONFIG, random_arrays(CONFIG))
    weights = sorted(online.there.rglob("*.safetensors"))
    for path in weights:
        path.with_suffix(".bin").touch()
    hub.find_checkpoint(REPOSITORY)
    assert not list(online.here.rglob("*.bin"))
    for path in weights:
        path.unlink()
        (online.here / path.relative_to(online.there)).unlink()
    hub.find_checkpoint(REPOSITORY)
    assert len(list(online.here.rglob("*.bin"))) == 3


def test_pickles_of_the_stacks_that_have_nothing_else(online):
    write_weights(online.there, "diffusers", CONFIG, random_arrays(CONFIG))
    path = online.there / "decoder" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    (online.there / "notes_encoder" / "diffusion_pytorch_model.bin").touch()
    hub.find_checkpoint(REPOSITORY)
    assert list(online.here.rglob("*.bin")) == [online.here / "decoder" / "diffusion_pytorch_model.bin"]


def test_without_huggingface_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"huggingface_hub.*spectrodiff\[hub\]"):
        hub.find_checkpoint(REPOSITORY)


@pytest.mark.parametrize("name", ["hf://google", "hf://", "hf://a/b/c", "hf://a/b c", "hf:///b"])
def test_what_names_no_repository(name):
    with pytest.raises(InputError, match=f"{name!r}.*hf://owner/name$"):
        hub.find_checkpoint(name)


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The library itself, without a network, and its cache: it holds owner/name."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    write_weights(repository / "snapshots" / commit, "diffusers", CONFIG, random_arrays(CONFIG))
    return repository / "snapshots" / commit


def test_without_a_network_the_cache_does(offline):
    assert hub.find_checkpoint("hf://owner/name") == offline
    assert open_checkpoint(offline).config == CONFIG


def test_without_a_network_what_was_never_downloaded_is_one_line(offline):
    with pytest.raises(InputError, match="hf://owner/other") as error:
        hub.find_checkpoint("hf://owner/other")
    assert "\n" not in str(error.value)
