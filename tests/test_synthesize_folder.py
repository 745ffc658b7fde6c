"""`spectrodiff synthesize` with a folder of MIDI files."""

import dataclasses
import io
import re
import sys

import numpy as np
import pytest
import soundfile
from inputs import random_notes

from spectrodiff.cli import main
from spectrodiff.notes.midi import write_midi
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.synthesizer import Synthesizer

FAST = ("--steps", "1", "--guidance", "1")


@pytest.fixture
def songs(tmp_path, synthesizer, monkeypatch):
    """A folder of three songs of different lengths and a text file; checkpoints are replaced by a tiny one."""
    monkeypatch.setattr(Synthesizer, "from_pretrained", lambda *_: synthesizer)
    folder = tmp_path / "songs"
    folder.mkdir()
    for seed, seconds in enumerate((3.0, 9.0, 6.0)):
        write_midi(random_notes(seed, seconds, voices=3, drums=0), folder / f"song{seed}.mid")
    (folder / "notes.txt").write_text("nothing to do with it")
    return folder


def run(songs, out, *options):
    main(["synthesize", "--midi", str(songs), "--out", str(out), *FAST, *options])


def test_songs_of_a_folder_match_songs_rendered_alone(songs, tmp_path):
    run(songs, tmp_path / "out", "--batch", "2", "--seed", "3")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["song0.wav", "song1.wav", "song2.wav"]
    for seed in range(3):
        run(songs / f"song{seed}.mid", tmp_path / "a.wav", "--seed", "3")
        paths = (tmp_path / "out" / f"song{seed}.wav", tmp_path / "a.wav")
        together, alone = (soundfile.read(path)[0] for path in paths)
        assert len(together) == len(alone)
        assert np.abs(together - alone).max() < 0.02 * np.abs(alone).max() + 1e-4


def test_existing_files_are_not_rendered_again(songs, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "song1.flac").write_bytes(b"done")
    run(songs, tmp_path / "out", "--format", "flac")
    assert (tmp_path / "out" / "song1.flac").read_bytes() == b"done"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"song0.flac", "song1.flac", "song2.flac"}
    assert ": 1 of 3 files" in capsys.readouterr().out


def test_bad_files_are_reported_and_others_rendered(songs, tmp_path, capsys):
    (songs / "bad.mid").write_bytes(b"MThd")
    write_midi(random_notes(1, seconds=4.0, voices=60, drums=3000), songs / "crowd.mid")
    with pytest.raises(SystemExit) as stopped:
        run(songs, tmp_path / "out")
    assert stopped.value.code == 2
    assert len(list((tmp_path / "out").iterdir())) == 3
    lines = [line for line in capsys.readouterr().err.splitlines() if "spectrodiff:" in line]
    assert len(lines) == 3
    assert "bad.mid" in lines[0]
    assert "crowd.mid: " in lines[1]
    assert "--on_overflow thin" in lines[1]
    assert "2 of 5 files" in lines[2]


def test_messages_are_not_on_the_line_of_the_progress_bar(songs, tmp_path, monkeypatch):
    """As on a terminal, where a carriage return goes back to the beginning of the line."""
    terminal = io.StringIO()
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    run(songs, tmp_path / "out")
    shown = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert sum(line.startswith(str(tmp_path / "out" / "song")) for line in shown) == 3
    assert sum("rendering: 100%" in line for line in shown) == 1


def test_progress_bar_counts_the_windows_of_all_songs(songs, tmp_path, capsys):
    """Songs of about 4, 10 and 7 seconds have 1, 2 and 2 windows of 5.12 s."""
    run(songs, tmp_path / "out")
    assert "rendering: 100%" in (error_output := capsys.readouterr().err)
    assert "5/5" in error_output
    assert "window/s" in error_output or "s/window" in error_output


def test_replaced_instruments_are_reported_once_per_song(songs, tmp_path, synthesizer, monkeypatch, capsys):
    classes = dataclasses.replace(synthesizer.config.tokenizer, program_map="midi_class")
    monkeypatch.setattr(synthesizer.mel_sampler, "tokenizer", NoteTokenizer(classes))
    (songs / "song0.mid").unlink()
    write_midi(random_notes(0, 3.0, programs=(40,), voices=3, drums=2), songs / "violin.mid")
    write_midi(random_notes(0, 3.0, programs=(40, 42), voices=9, drums=2), songs / "strings.mid")
    run(songs, tmp_path / "out")
    lines = [line for line in capsys.readouterr().err.splitlines() if "(40)" in line]
    assert sum("strings.mid" in line for line in lines) == 1
    assert any(re.search(r": Cello \(42\) .*\bViolin \(40\)$", line) for line in lines)
    assert not any("violin.mid" in line for line in lines)


@pytest.mark.parametrize("options", [("--plot", "a.png"), ("--mel_out", "a.npz"), ("--batch", "0")])
def test_options_for_single_files_are_rejected(songs, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(songs, tmp_path / "out", *options)
    assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()


def test_subfolders_are_reported_and_not_searched(songs, tmp_path, capsys):
    (songs / "more").mkdir()
    (songs / "song0.mid").rename(songs / "more" / "song0.mid")
    run(songs, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"song1.wav", "song2.wav"}
    assert "(1)" in capsys.readouterr().err


def test_midi_file_is_read_before_the_weights(songs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Synthesizer, "from_pretrained", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(SystemExit) as stopped:
        run(songs / "notes.txt", tmp_path / "a.wav")
    assert stopped.value.code == 2
    assert "notes.txt" in capsys.readouterr().err


def test_batch_is_checked_for_a_single_file_too(songs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(songs / "song0.mid", tmp_path / "a.wav", "--batch", "0")
    assert stopped.value.code == 2
    assert "batch" in capsys.readouterr().err
    assert not (tmp_path / "a.wav").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [(("--overlap", "999"), "overlap is 999"), (("--batch", "0"), "batch is 0"), (("--seed", "-1"), "seed is -1")],
)
def test_refused_option_leaves_no_folder(songs, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        run(songs, tmp_path / "new" / "out", *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_output_folder_may_not_be_named_like_audio(songs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(songs, tmp_path / "song.wav")
    assert "song.wav " in capsys.readouterr().err
    assert not (tmp_path / "song.wav").exists()


def test_format_is_refused_for_one_file(songs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(songs / "song0.mid", tmp_path / "a.wav", "--format", "flac")
    assert re.search(r"--format .*--out\b", capsys.readouterr().err)


def test_folder_in_place_of_an_audio_file_is_named(songs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(songs / "song0.mid", tmp_path)
    assert f" {tmp_path}: " in capsys.readouterr().err


def test_folder_without_midi_files_is_an_error(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit):
        run(tmp_path / "empty", tmp_path / "out")
    assert f"{tmp_path}/empty " in capsys.readouterr().err
