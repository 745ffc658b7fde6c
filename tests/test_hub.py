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
def packaged_weights(tmp_path, monkeypatch):
    """The weights folder of a package with two checkpoints."""
    for name in ("demo", "piano"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "spectrogram.json").touch()
    (tmp_path / "weights" / "README.md").touch()
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights"


def test_packaged_name_is_found(packaged_weights):
    assert hub.find_checkpoint("demo") == packaged_weights / "demo"


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_folder_is_found_by_path(packaged_weights, kind):
    (packaged_weights.parent / "export").mkdir()
    assert hub.find_checkpoint(kind("export")) == pathlib.Path("export")


def test_workdir_of_a_run_is_refused_naming_its_export(packaged_weights):
    run = packaged_weights.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"spectrodiff export \S+/run NEW$"):
        hub.find_checkpoint(run / "export")
    (run / "export").mkdir()
    assert hub.find_checkpoint(run / "export") == run / "export"
    with pytest.raises(InputError, match=r"/run .*\S+/run/export$"):
        hub.find_checkpoint(run)


def test_packaged_name_precedes_a_folder_of_that_name(packaged_weights):
    (packaged_weights.parent / "demo").mkdir()
    assert hub.find_checkpoint("demo") == packaged_weights / "demo"
    assert hub.find_checkpoint("./demo") == pathlib.Path("demo")


@pytest.mark.parametrize("name", ["large", "README.md", "weights/README.md", "demo/nope"])
def test_unknown_name_lists_the_packaged_ones(packaged_weights, name):
    with pytest.raises(InputError, match=f"'{name}'.*demo, piano"):
        hub.find_checkpoint(name)


def test_package_without_weights_asks_for_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "none")
    with pytest.raises(InputError, match=r"checkpoint 'demo': "):
        hub.find_checkpoint("demo")


# ---- hf://owner/name

REPOSITORY = "hf://google/music-spectrogram-diffusion"
CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", PAPER.model.max_tokens), PAPER.model)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    """A stand-in for huggingface_hub: every repository is the folder `there`, downloads are copied to `here`."""
    there, here = tmp_path / "there", tmp_path / "here"
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append(repository)
        for path in filter(pathlib.Path.is_file, there.rglob("*")):
            name = str(path.relative_to(there))
            if any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):  # like huggingface_hub
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                (here / name).write_bytes(path.read_bytes())
        return str(here)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    return types.SimpleNamespace(there=there, here=here, asked=asked)


@pytest.mark.parametrize("kind", FORMATS)
def test_only_needed_files_are_downloaded(fake_hub, kind):
    write_weights(fake_hub.there, kind, CONFIG, random_arrays(CONFIG))
    (fake_hub.there / "melgan").mkdir()
    (fake_hub.there / "melgan" / "model.onnx").touch()
    needed = {path.relative_to(fake_hub.there) for path in fake_hub.there.rglob("*") if path.is_file()}
    for unneeded in ("README.md", "song.mid", "decoder/flax_model.msgpack", "checkpoint_500000/state.decoder/0"):
        (fake_hub.there / unneeded).parent.mkdir(parents=True, exist_ok=True)
        (fake_hub.there / unneeded).touch()
    folder = hub.find_checkpoint(REPOSITORY)
    assert fake_hub.asked == ["google/music-spectrogram-diffusion"]
    found = open_checkpoint(folder)
    assert kind.startswith(found.format)
    assert found.onnx_vocoder is not None
    assert found.specs().keys() == found.arrays.keys()
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == needed


def test_pickles_are_downloaded_only_without_safetensors(fake_hub):
    write_weights(fake_hub.there, "diffusers", CONFIG, random_arrays(CONFIG))
    safetensors = sorted(fake_hub.there.rglob("*.safetensors"))
    for path in safetensors:
        path.with_suffix(".bin").touch()
    hub.find_checkpoint(REPOSITORY)
    assert not list(fake_hub.here.rglob("*.bin"))
    for path in safetensors:
        path.unlink()
        (fake_hub.here / path.relative_to(fake_hub.there)).unlink()
    hub.find_checkpoint(REPOSITORY)
    assert len(list(fake_hub.here.rglob("*.bin"))) == 3


def test_pickles_are_chosen_per_component(fake_hub):
    write_weights(fake_hub.there, "diffusers", CONFIG, random_arrays(CONFIG))
    path = fake_hub.there / "decoder" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    (fake_hub.there / "notes_encoder" / "diffusion_pytorch_model.bin").touch()
    hub.find_checkpoint(REPOSITORY)
    assert list(fake_hub.here.rglob("*.bin")) == [fake_hub.here / "decoder" / "diffusion_pytorch_model.bin"]


def test_missing_huggingface_hub_raises_input_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"huggingface_hub.*spectrodiff\[hub\]"):
        hub.find_checkpoint(REPOSITORY)


@pytest.mark.parametrize("name", ["hf://google", "hf://", "hf://a/b/c", "hf://a/b c", "hf:///b"])
def test_invalid_repository_names_raise_input_error(name):
    with pytest.raises(InputError, match=f"{name!r}.*hf://owner/name$"):
        hub.find_checkpoint(name)


@pytest.fixture
def offline_snapshot(tmp_path, monkeypatch):
    """A snapshot of owner/name in the cache of the real huggingface_hub, which is set to be offline."""
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


def test_cached_repository_is_found_offline(offline_snapshot):
    assert hub.find_checkpoint("hf://owner/name") == offline_snapshot
    assert open_checkpoint(offline_snapshot).config == CONFIG


def test_uncached_repository_offline_is_a_one_line_error(offline_snapshot):
    with pytest.raises(InputError, match="hf://owner/other") as error:
        hub.find_checkpoint("hf://owner/other")
    assert "\n" not in str(error.value)
