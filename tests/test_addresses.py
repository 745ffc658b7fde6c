"""URLs such as gs://bucket/place in place of paths: a one-line error, and no folder named "gs:" is created."""

import os
import pathlib

import pytest
from inputs import random_notes

from spectrodiff.cli import main
from spectrodiff.data.builders.folder import Folder
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.builders.rendered.corpus import prepare_rendered
from spectrodiff.data.dataset import open_dataset
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import write_midi
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.training.checkpoints import Checkpoints

AT = "gs://bucket/place"
COMMANDS = {
    "--out": ["synthesize", "--midi", "song.mid", "--out", f"{AT}/song.wav"],
    "--midi": ["synthesize", "--midi", f"{AT}/song.mid", "--out", "song.wav"],
    "--plot": ["synthesize", "--midi", "song.mid", "--out", "song.wav", "--plot", f"{AT}/song.png"],
    "--mel_out": ["synthesize", "--midi", "song.mid", "--out", "song.wav", "--mel_out", f"{AT}/mel.npz"],
    "--checkpoint": ["synthesize", "--midi", "song.mid", "--out", "song.wav", "--checkpoint", AT],
    "--vocoder": ["synthesize", "--midi", "song.mid", "--out", "song.wav", "--vocoder", AT],
    "--midi and a folder": ["synthesize", "--midi", AT, "--out", "rendered"],
    "demo --midi": ["demo", "--midi", f"{AT}/song.mid", "--out", "."],
    "demo --out": ["demo", "--midi", "song.mid", "--out", AT],
    "prepare --data_dir": ["prepare", "folder", "--manual_dir", ".", "--data_dir", AT],
    "prepare --manual_dir": ["prepare", "folder", "--manual_dir", AT, "--data_dir", "data"],
    "prepare rendered": ["prepare", "rendered", "--data_dir", AT],
    "evaluate --data_dir": ["evaluate", "--data_dir", AT, "--workdir", "run"],
    "evaluate --workdir": ["evaluate", "--data_dir", "data", "--workdir", AT],
    "export": ["export", AT, "weights"],
    "export to": ["export", ".", AT],
    "convert": ["convert", AT, "weights", "--to", "diffusers"],
    "info": ["info", AT],
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_commands_refuse_urls_in_one_line_before_loading_weights(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_midi(random_notes(0, 3.0), "song.mid")
    monkeypatch.setattr(
        "spectrodiff.pretrained.formats.Checkpoint.build", lambda *_: pytest.fail("weights were loaded")
    )
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "gs://bucket/place" in said
    assert said.rpartition("\r")[2].startswith("spectrodiff: ")  # a slow machine prints progress before it
    assert os.listdir() == ["song.mid"]


def test_non_utf8_paths_are_refused_where_libraries_need_utf8(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9")
    os.mkdir(odd)
    for place in (f"{odd}/data", tmp_path / odd):
        for use in (
            lambda at: open_dataset(at, "rendered"),
            lambda at: Checkpoints(pathlib.Path(at), 2),
            lambda at: prepare(Folder(), ".", at),
            lambda at: prepare_rendered(at, hours=1.0),
        ):
            with pytest.raises(InputError, match="UTF-8"):
                use(place)
    assert os.listdir(odd) == []


def test_python_functions_refuse_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (find_checkpoint, lambda at: open_dataset(at, "rendered")):
        with pytest.raises(InputError, match=r"^gs://bucket/place "):
            use(AT)
