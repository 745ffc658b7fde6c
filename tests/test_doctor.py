"""`spectrodiff doctor` reports installed and missing dependencies."""

import ast
import importlib.metadata
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from spectrodiff.cli import main
from spectrodiff.commands import doctor
from spectrodiff.data import soundfont
from spectrodiff.data.builders.rendered import sources

ROOT = pathlib.Path(__file__).parent.parent


def doctor_lines(capsys):
    main(["doctor"])
    return capsys.readouterr().out.splitlines()


def test_extras_equal_those_of_setup_py():
    tree = ast.parse((ROOT / "setup.py").read_text())
    (features,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "FEATURES"
    )
    names = {extra: {re.split("[<>=]", wanted)[0] for wanted in features[extra]} for extra in features}
    assert names == {extra: set(distributions) for extra, (distributions, _) in doctor.EXTRAS.items()}


def test_file_locations_equal_those_of_rendering():
    assert (str(doctor.SOUNDFONT), doctor.GROOVES, doctor.WADS) == (soundfont.SOUNDFONT, sources.GROOVES, sources.WADS)


def test_installed_packages_are_listed_with_version(capsys):
    (line,) = (line for line in doctor_lines(capsys) if line.split()[:2] == ["ok", "JAX"])
    assert importlib.metadata.version("jax") in line


def test_missing_dependencies_come_with_an_install_command(capsys, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    for place in ("SOUNDFONT", "GROOVES", "WADS"):
        monkeypatch.setattr(doctor, place, pathlib.Path("/nope"))
    printed = doctor_lines(capsys)
    gone = [place for place, line in enumerate(printed) if line.startswith("missing")]
    assert len(gone) == len(doctor.EXTRAS) + 6
    for place in gone:
        assert re.match(r"\s+(pip install|sudo apt-get install|brew install) \S", printed[place + 1])


@pytest.mark.parametrize("existing", [True, False])
def test_cache_folder_is_checked_for_write_access(capsys, monkeypatch, tmp_path, existing):
    folder = tmp_path / "cache"
    if not existing:
        folder.write_text("a file in its place")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "jax"))
    (line,) = (line for line in doctor_lines(capsys) if "cache" in line.split()[:2])
    assert line.startswith("ok" if existing else "missing")
    assert str(folder) in line


def test_doctor_imports_no_heavy_package_but_jax():
    program = "import sys; from spectrodiff.cli import main; main(['doctor']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "jax" in loaded
    assert {"flax", "orbax", "note_seq", "tensorflow", "onnxruntime", "tensorflow_datasets"}.isdisjoint(loaded)


def test_reader_that_stops_reading_ends_the_command_without_a_traceback():
    command = [sys.executable, "-u", "-m", "spectrodiff", "doctor"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        assert running.stderr.read().count("\n") == 1
        assert running.wait(60) == 128 + signal.SIGPIPE
