import dataclasses
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
import scipy.signal
import soundfile
from inputs import make_recording

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.builders.alignment import align
from spectrodiff.data.builders.folder import Folder, find_pairs, split_by_name
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.builders.rendered.sources import split_by_hash
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import Corpus
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import write_midi

RECORDINGS = [make_recording(seed, seconds=4.0) for seed in range(3)]


def write_pair(audio: pathlib.Path, midi: pathlib.Path, recording, rate=SAMPLE_RATE) -> None:
    for path in (audio, midi):
        path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(audio, scipy.signal.resample_poly(recording.audio, rate, SAMPLE_RATE), rate)
    write_midi(recording.notes, midi)


@pytest.fixture
def pairs_folder(tmp_path):
    """A folder with three pairs of audio and MIDI."""
    folder = tmp_path / "own"
    for number, recording in enumerate(RECORDINGS):
        write_pair(folder / f"song{number}.wav", folder / f"song{number}.mid", recording)
    return folder


def entry_names(folder):
    return [entry.name for entry in Folder().entries(folder)]


def shifted(notes, seconds):
    return dataclasses.replace(
        notes, start=notes.start + seconds, end=notes.end + seconds, total_time=notes.total_time + max(seconds, 0)
    )


def report_lines(capsys, folder, corpus=None):
    """The lines printed by the report on a folder."""
    corpus = corpus or Folder()
    capsys.readouterr()
    corpus.report(folder, corpus.entries(folder), 1)
    return capsys.readouterr().out.splitlines()


def test_folder_implements_the_corpus_protocol():
    assert isinstance(Folder(), Corpus)


@pytest.mark.parametrize(
    ("suffix", "rate"), [(".wav", 44100), (".WAV", 8000), (".flac", 48000), (".mp3", 44100), (".ogg", 22050)]
)
def test_audio_formats_and_rates_are_read_in_sync(tmp_path, suffix, rate):
    recording = RECORDINGS[0]
    write_pair(tmp_path / f"a{suffix}", tmp_path / "a.midi", recording, rate)
    (entry,) = Folder().entries(tmp_path)
    found = Folder().read(entry)
    assert found.name == "a"
    assert len(found.audio) == pytest.approx(len(recording.audio), abs=1200)  # MP3 pads to frames of 1152
    assert found.notes.total_time == len(found.audio) / SAMPLE_RATE
    order = np.lexsort((found.notes.pitch, found.notes.start))
    ours = np.lexsort((recording.notes.pitch, recording.notes.start.round(3)))
    assert (found.notes.pitch[order] == recording.notes.pitch[ours]).all()
    agreed = align(found.audio, found.notes)
    assert agreed.correlation > 0.3
    assert abs(agreed.lag) <= 0.04


def test_names_omit_audio_and_midi_folders_and_suffixes(tmp_path):
    for audio, midi in (
        ("audio/a.wav", "midi/a.mid"),
        ("Audio/live/a.flac", "MIDI/live/a.MID"),
        ("b.v2.ogg", "midi/b.v2.midi"),
        ("disc/audio/c.wav", "disc/audio/c.mid"),
    ):
        write_pair(tmp_path / audio, tmp_path / midi, RECORDINGS[0])
    write_pair(tmp_path / ".trash/d.wav", tmp_path / ".trash/d.mid", RECORDINGS[0])
    shutil.copy(tmp_path / "audio/a.wav", tmp_path / "audio/._a.wav")
    (tmp_path / "notes.txt").touch()
    assert sorted(entry_names(tmp_path)) == ["a", "b.v2", "disc/audio/c", "live/a"]
    assert find_pairs(tmp_path).unpaired == []


def test_names_are_normalized_to_composed_unicode(tmp_path):
    """Folders copied from macOS may have decomposed file names."""
    write_pair(tmp_path / "Cafe\u0301/Lied.wav", tmp_path / "Caf\u00e9/Lied.mid", RECORDINGS[0])
    (tmp_path / "splits.csv").write_text("name,split\nCafe\u0301/Lied,test\n", encoding="utf-8")
    (entry,) = Folder().entries(tmp_path)
    assert (entry.name, entry.split) == ("Caf\u00e9/Lied", "test")
    assert len(Folder().read(entry).notes) == len(RECORDINGS[0].notes)
    shutil.copy(tmp_path / "Cafe\u0301/Lied.wav", tmp_path / "Caf\u00e9/Lied.wav")
    with pytest.raises(InputError, match=r"Lied\.wav .*Lied\.wav .*'Caf\u00e9/Lied'"):
        entry_names(tmp_path)


@pytest.mark.parametrize(
    "stem", [os.fsdecode(b"caf\xe9 \xff"), "x" * 251, "\u00e9" * 125], ids=["no text", "long", "long in bytes"]
)
def test_long_and_non_utf8_names_become_records(tmp_path, stem):
    write_pair(tmp_path / "in" / "a.wav", tmp_path / "in" / "a.mid", RECORDINGS[0])
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(stem + path.suffix))
    prepare(Folder(), tmp_path / "in", tmp_path / "data", workers=1)
    dataset = open_dataset(tmp_path / "data", "folder")
    (record,) = dataset[dataset.splits[0]]
    expected = "caf\\xe9 \\xff" if stem.startswith("caf") else stem
    assert record["name"].decode() == expected


def test_other_suffixes_are_read_or_reported(tmp_path, capsys):
    for number, midi in enumerate(("one.kar", "two.mid", "three.mid")):
        write_pair(tmp_path / midi.replace(midi[-4:], ".aiff"), tmp_path / f"{number}.mid", RECORDINGS[number])
        (tmp_path / f"{number}.mid").rename(tmp_path / midi)
    (tmp_path / "one.aiff").rename(tmp_path / "one.aif")
    (tmp_path / "two.aiff").rename(tmp_path / "two.AIFF")
    (tmp_path / "three.aiff").rename(tmp_path / "three.m4a")
    (tmp_path / "four.wma").touch()
    assert entry_names(tmp_path) == ["one", "two"]
    lines = report_lines(capsys, tmp_path)
    assert any(line.startswith(f"{tmp_path}/three.mid ") for line in lines)
    (line,) = [line for line in lines if ".m4a" in line]
    assert "(.m4a, .wma): 2, " in line


def test_folder_of_unreadable_formats_raises_input_error(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.m4a").touch()
        (tmp_path / f"{name}.mid").touch()
    with pytest.raises(InputError, match=r"\(\.m4a\): 2, .*one\.m4a"):
        entry_names(tmp_path)


def test_two_audio_files_with_one_name_raise_input_error(pairs_folder):
    shutil.copy(pairs_folder / "song1.wav", pairs_folder / "song1.flac")
    with pytest.raises(InputError, match=r"song1\.flac .*song1\.wav .*'song1'"):
        entry_names(pairs_folder)


@pytest.mark.parametrize("where", ["audio", "midi"])
def test_subfolder_with_only_audio_or_midi_raises_input_error(tmp_path, where):
    write_pair(tmp_path / "audio/a.wav", tmp_path / "midi/a.mid", RECORDINGS[0])
    counts = {"audio": "1 audio .*0 MIDI", "midi": "0 audio .*1 MIDI"}[where]
    with pytest.raises(InputError, match=f"{where} .*{counts}"):
        entry_names(tmp_path / where)


def test_missing_folder_raises_input_error(pairs_folder):
    for path in (pairs_folder / "nope", pairs_folder / "song0.wav"):
        with pytest.raises(InputError, match=f"^{path} "):
            entry_names(path)


def test_splits_by_hash_are_stable_and_not_empty():
    many = [f"song{number}" for number in range(400)]
    assert split_by_name(many) == {name: split_by_hash(name) for name in many}
    assert split_by_name(many[::-1]) == split_by_name(many)
    for count in range(2, 30):
        for start in range(0, 300, 30):
            splits = split_by_name(many[start : start + count])
            assert len(splits) == count
            assert set(splits.values()) >= {"train", "validation"}
            moved = [name for name, split in splits.items() if split != split_by_hash(name)]
            assert len(moved) <= 2
    assert list(split_by_name(["alone"]).values()) == ["train"]


@pytest.mark.parametrize("first", ["train", "validation", "test"])
@pytest.mark.parametrize("second", ["train", "validation", "test"])
def test_two_pieces_are_split_into_train_and_validation(monkeypatch, first, second):
    falls = {"a": first, "b": second}
    monkeypatch.setattr("spectrodiff.data.builders.folder.split_by_hash", falls.__getitem__)
    assert set(split_by_name("ab").values()) == {"train", "validation"}


def test_csv_sets_splits_and_programs(pairs_folder):
    table = pairs_folder.parent / "mine.csv"
    table.write_text("name,split,program,note\nsong0,test,40,x\nsong1,,,\nsong2,train,,\n")
    entries = {entry.name: entry for entry in Folder(csv=str(table)).entries(pairs_folder)}
    assert (entries["song0"].split, entries["song1"].split, entries["song2"].split) == (
        "test",
        split_by_hash("song1"),
        "train",
    )
    changed, plain = (Folder().read(entries[name]).notes for name in ("song0", "song2"))
    assert set(changed.program[~changed.is_drum]) == {40}
    assert changed.is_drum.sum() == RECORDINGS[0].notes.is_drum.sum() > 0
    assert (changed.program[changed.is_drum] == 0).all()
    assert set(plain.program) == set(RECORDINGS[2].notes.program) != {40}


def test_splits_csv_in_the_folder_is_used(pairs_folder):
    (pairs_folder / "splits.csv").write_text(
        "name,split,source,programs\nsong0,validation,a,0 40 drums\nsong2,validation,b,\n"
    )
    entries = Folder().entries(pairs_folder)
    assert {entry.name: entry.split for entry in entries} == {
        "song0": "validation",
        "song1": split_by_hash("song1"),
        "song2": "validation",
    }


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ("name\nsong9\n", r"'song9'.*own\b"),
        ("name,split\nsong0,train\nsong0,test\n", "'song0' twice"),
        ("name,split\nsong0,dev\n", "'song0' .*split 'dev'"),
        ("name,program\nsong0,128\n", "'song0' .*program '128'"),
        ("name,program\nsong0,violin\n", "'song0' .*program 'violin'"),
        ("file,split\nsong0,train\n", r"\bcolumn name\b"),
    ],
)
def test_invalid_csv_raises_input_error(pairs_folder, rows, why):
    (pairs_folder / "splits.csv").write_text(rows)
    with pytest.raises(InputError, match=rf"splits\.csv .*{why}"):
        entry_names(pairs_folder)


def test_missing_csv_raises_input_error(pairs_folder):
    with pytest.raises(InputError, match=r"nope\.csv "):
        Folder(csv=str(pairs_folder / "nope.csv")).entries(pairs_folder)


@pytest.mark.parametrize("name", ["Violin", "my violin", "1st", ""])
def test_invalid_dataset_names_raise_input_error(name):
    with pytest.raises(InputError, match=f"dataset .* {name!r}: "):
        Folder(name=name)


def test_changed_files_change_their_entries(pairs_folder):
    before = Folder().entries(pairs_folder)
    assert Folder().entries(pairs_folder) == before
    os.utime(pairs_folder / "song1.mid", ns=(1, 1))
    assert [a == b for a, b in zip(Folder().entries(pairs_folder), before, strict=True)] == [True, False, True]


def test_report_of_a_valid_folder(pairs_folder, capsys):
    splits = [entry.split for entry in Folder().entries(pairs_folder)]
    counts = ", ".join(f"{splits.count(split)} {split}" for split in ("train", "validation", "test") if split in splits)
    first, last = report_lines(capsys, pairs_folder)
    assert re.match(rf"{pairs_folder} .*\b3 pairs .*: {counts}$", first)
    assert last.startswith("0 of 3 pairs ")


def test_report_names_suspicious_pairs(tmp_path, capsys):
    recording = make_recording(5, seconds=10.0)
    late = dataclasses.replace(recording, notes=shifted(recording.notes, 0.3))
    early = dataclasses.replace(recording, notes=shifted(recording.notes.select(recording.notes.start > 0.5), -0.3))
    cases = {
        "early": early,
        "good": recording,
        "late": late,
        "long": dataclasses.replace(recording, audio=recording.audio[: 7 * SAMPLE_RATE]),
        "other": dataclasses.replace(recording, notes=make_recording(6, seconds=10.0).notes),
        "short": dataclasses.replace(recording, notes=recording.notes.select(recording.notes.end < 4)),
        "silent": dataclasses.replace(recording, audio=0 * recording.audio),
    }
    for name, case in cases.items():
        write_pair(tmp_path / f"{name}.wav", tmp_path / f"{name}.mid", case)
    write_pair(tmp_path / "audio/noise.wav", tmp_path / "midi/text.mid", recording)
    write_pair(tmp_path / "corrupt.wav", tmp_path / "corrupt.mid", recording)
    write_pair(tmp_path / "words.wav", tmp_path / "words.mid", recording)
    (tmp_path / "corrupt.wav").write_bytes(b"RIFF" + b"\7" * 1000)
    (tmp_path / "words.mid").write_text("la la la")

    first, *lines, last = report_lines(capsys, tmp_path)
    assert re.match(rf"{tmp_path} .*\b9 pairs ", first)
    left_out = [line.split()[0] for line in lines[:2]]
    assert left_out == [f"{tmp_path}/audio/noise.wav", f"{tmp_path}/midi/text.mid"]
    problems = dict(line.split(": ", 1) for line in lines[2:])
    assert problems.keys() == {*cases, "corrupt", "words"} - {"good"}
    assert last.startswith(f"{len(problems)} of 9 pairs ")
    assert f" {tmp_path}/corrupt.wav " in problems["corrupt"]
    assert problems["words"].startswith(f"{tmp_path}/words.mid ")
    for name, side in (("late", "before"), ("early", "after")):
        assert re.match(rf".* 0\.(28|30|32) s {side} .*\b0\.\d", problems[name])
    ends = recording.notes.end
    assert re.match(rf".*\b{ends.max():.1f} s\b.*\b7\.0 s\b", problems["long"])
    seconds = len(recording.audio) / SAMPLE_RATE
    assert re.match(rf".*\b{ends[ends < 4].max():.1f} s\b.*\b{seconds:.1f} s\b", problems["short"])
    for name in ("other", "silent"):
        assert re.fullmatch(r"\D+0\.\d\d\)", problems[name]), problems[name]  # their correlation alone


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda folder: (folder / "song1.wav").write_bytes(b"RIFF" + b"\7" * 99), r"song1\.wav "),
        (lambda folder: (folder / "song1.mid").write_bytes(b"MThd" + b"\7" * 99), r"song1\.mid .*MIDI"),
        (lambda folder: (folder / "song1.mid").write_bytes(b""), r"song1\.mid .*\bempty\b"),
        (
            lambda folder: soundfile.write(folder / "song1.wav", RECORDINGS[1].audio[:16000], 16000),
            r"song1\.mid .*\b\d\.\d s\b.*\b1\.0 s",
        ),
    ],
)
def test_bad_pair_raises_input_error_or_is_skipped(pairs_folder, tmp_path, spoil, why, capsys):
    spoil(pairs_folder)
    with pytest.raises(InputError, match=why) as error:
        prepare(Folder(), pairs_folder, tmp_path / "data", workers=1)
    assert "\n" not in str(error.value)
    assert "song1: " in capsys.readouterr().out  # also in the report
    prepare(Folder(), pairs_folder, tmp_path / "data", workers=1, skip_bad=True)
    dataset = open_dataset(tmp_path / "data", "folder")
    found = {record["name"] for split in dataset.splits for record in dataset[split]}
    assert found == {b"song0", b"song2"}


def test_two_folders_need_different_dataset_names(pairs_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(pairs_folder, other)
    prepare(Folder(), pairs_folder, tmp_path / "data")
    with pytest.raises(InputError, match=r"folder/1\.0\.0 .* source .*own.*other"):
        prepare(Folder(), other, tmp_path / "data")
    prepare(Folder(name="cello"), other, tmp_path / "data")
    assert open_dataset(tmp_path / "data", "cello").splits
