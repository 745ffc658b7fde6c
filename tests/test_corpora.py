"""Builders of all corpora, run on miniature copies in the original folder layouts."""

import collections
import dataclasses
import itertools
import json
import pathlib
import pickle
import re
import shutil

import corpora_writer as writer
import numpy as np
import pytest
import soundfile

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.data.builders import CORPORA, corpus, known_bad, reading
from spectrodiff.data.recordings import SPLITS, Corpus, decode, encode
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi

WRITERS = {
    "maestro": writer.write_maestro,
    "slakh": writer.write_slakh,
    "cerberus4": writer.write_slakh,
    "guitarset": writer.write_guitarset,
    "musicnet": writer.write_musicnet,
    "urmp": writer.write_urmp,
    "groove": writer.write_groove,
}
# A subfolder of each corpus that a user may mistake for its root.
INSIDE = {
    "maestro": "2018",
    "slakh": "train/Track00001",
    "cerberus4": "train",
    "guitarset": "annotation",
    "musicnet": "train_data",
    "urmp": "01_Jupiter_vn_vc",
    "groove": "drummer1/eval_session",
}
SAMPLES = round(writer.SECONDS * SAMPLE_RATE)
every_corpus = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(scope="session")
def corpus_roots(tmp_path_factory):
    """The root of each miniature corpus, which is alone in its parent folder. Read-only."""
    roots = {write: write(tmp_path_factory.mktemp(write.__name__)) for write in set(WRITERS.values())}
    return {name: roots[write] for name, write in WRITERS.items()}


def read_all(root, name, **options):
    """All recordings of a corpus by entry name."""
    kind = corpus(name, **options)
    return {entry.name: kind.read(entry) for entry in kind.entries(root)}


def note_rows(notes):
    """Sorted tuples (start, end, pitch, velocity, program or None for drums)."""
    programs = [None if drum else program for drum, program in zip(notes.is_drum, notes.program.tolist(), strict=True)]
    columns = [column.tolist() for column in (notes.start, notes.end, notes.pitch, notes.velocity)]
    return sorted(zip(*columns, programs, strict=True), key=lambda row: (*row[:4], -1 if row[4] is None else row[4]))


def input_error_of(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reading_error(root, name, piece):
    """The error of reading one piece; listing the corpus must succeed."""
    kind = corpus(name)
    entry = next(entry for entry in kind.entries(root) if entry.name == piece)
    return input_error_of(lambda: kind.read(entry))


# ---- all corpora


@every_corpus
def test_corpora_implement_the_corpus_protocol(name, corpus_roots):
    kind = corpus(name)
    assert isinstance(kind, Corpus)
    assert kind.name == name
    assert kind.homepage.startswith("https://")
    assert "\n" not in kind.description
    assert pickle.loads(pickle.dumps(kind)) == kind
    entries = kind.entries(corpus_roots[name])
    assert entries == kind.entries(corpus_roots[name])
    assert pickle.loads(pickle.dumps(entries)) == entries
    assert len({entry.name for entry in entries}) == len(entries)
    assert not any("/" in entry.name for entry in entries)
    assert {entry.split for entry in entries} <= set(SPLITS)


@every_corpus
def test_recordings_are_valid_and_round_trip_through_records(name, corpus_roots):
    for piece, recording in read_all(corpus_roots[name], name).items():
        assert recording.name == piece
        for part in (recording, *recording.stems):
            assert part.audio.dtype == np.float32
            assert len(part.audio) == len(recording.audio)
            assert part.notes.total_time == len(recording.audio) / SAMPLE_RATE
            assert len(part.notes)
            assert (part.notes.end <= part.notes.total_time).all()
        again = decode(encode(recording))
        assert len(again.stems) == len(recording.stems)
        for ours, theirs in zip((again, *again.stems), (recording, *recording.stems), strict=True):
            assert note_rows(ours.notes) == note_rows(theirs.notes)
            assert ours.notes.total_time == theirs.notes.total_time
            np.testing.assert_allclose(ours.audio, theirs.audio, atol=1 / 32768)


@every_corpus
def test_audio_and_notes_of_stems_sum_to_the_mix(name, corpus_roots):
    for recording in read_all(corpus_roots[name], name).values():
        assert bool(recording.stems) == (name in ("slakh", "cerberus4", "urmp"))
        if recording.stems:
            inside = slice(200, -200)  # resampling differs at the ends of a shorter mix
            total = np.sum([stem.audio for stem in recording.stems], axis=0)
            np.testing.assert_allclose(total[inside], recording.audio[inside], atol=1e-4)
            parts = itertools.chain.from_iterable(note_rows(stem.notes) for stem in recording.stems)
            assert collections.Counter(parts) == collections.Counter(note_rows(recording.notes))


@every_corpus
def test_parent_folder_is_accepted(name, corpus_roots):
    assert corpus(name).entries(corpus_roots[name].parent) == corpus(name).entries(corpus_roots[name])


@every_corpus
def test_subfolder_is_refused_naming_the_root(name, corpus_roots):
    message = input_error_of(lambda: corpus(name).entries(corpus_roots[name] / INSIDE[name]))
    assert message.endswith(f"name {corpus_roots[name]}")


@every_corpus
def test_two_copies_in_one_folder_are_ambiguous(name, tmp_path):
    ours, theirs = WRITERS[name](tmp_path), tmp_path / "copy"
    shutil.copytree(ours, theirs)
    message = input_error_of(lambda: corpus(name).entries(tmp_path))
    assert str(ours) in message
    assert str(theirs) in message


@every_corpus
def test_other_folder_is_refused_naming_the_homepage(name, tmp_path):
    (tmp_path / "archive.zip").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "archive.zip"):
        message = input_error_of(lambda folder=folder: corpus(name).entries(folder))
        assert str(folder) in message
        assert corpus(name).homepage in message


def test_missing_file_pattern_is_named(tmp_path):
    shutil.rmtree(writer.write_musicnet(tmp_path) / "test_labels")
    message = input_error_of(lambda: corpus("musicnet").entries(tmp_path / "musicnet"))
    assert "test_labels/*.csv" in message


def test_unknown_corpora_and_options_list_the_known_ones():
    assert input_error_of(lambda: corpus("maestr")).endswith(", ".join(CORPORA))
    assert input_error_of(lambda: corpus("slakh", mixes=3)).endswith(" submixes, seed, skip_known_bad")
    assert input_error_of(lambda: corpus("maestro", seed=3)).endswith(" none")


# ---- mismatched or unreadable labels and audio


LABELS = pathlib.Path("labels.csv")


def silent_audio(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def one_note(start, end):
    return reading.make_notes(LABELS, [(start, end, 60, 0)])


def test_notes_are_cut_at_the_end_of_the_audio():
    assert note_rows(reading.fit(one_note(1.0, 3.0), silent_audio(2.0), LABELS)) == [
        (1.0, 2.0, 60, reading.VELOCITY, 0)
    ]
    assert reading.fit(one_note(0.0, 1.0), silent_audio(2.0), LABELS).total_time == 2.0


def test_notes_shortly_after_the_end_are_dropped():
    assert len(reading.fit(one_note(2.0 + reading.LATE, 5.0), silent_audio(2.0), LABELS)) == 0


def test_notes_long_after_the_end_are_an_error():
    message = input_error_of(lambda: reading.fit(one_note(3.25, 5.0), silent_audio(2.0), LABELS))
    assert re.match(r"labels\.csv .*\b3\.2 s\b.*\b2\.0 s", message)


@pytest.mark.parametrize(
    "row",
    [(-0.1, 1, 60, 0), (1, 0.9, 60, 0), (0, 1, 127.6, 0), (0, 1, -1, 0), (0, 1, 60, -1), (0, 1, 60, 128),
     (float("nan"), 1, 60, 0), (0, float("inf"), 60, 0)],
)  # fmt: skip
def test_invalid_notes_raise_input_error(row):
    message = input_error_of(lambda: reading.make_notes(LABELS, [(0, 1, 60, 0), row]))
    assert message.startswith("labels.csv ")
    assert ", ".join(f"{value:g}" for value in row) in message


def test_lengthen_cuts_or_zero_pads_audio():
    audio = np.arange(1, 4, dtype=np.float32)
    assert reading.lengthen(audio, 2).tolist() == [1, 2]
    assert reading.lengthen(audio, 5).tolist() == [1, 2, 3, 0, 0]
    assert reading.lengthen(audio, 5).dtype == np.float32


# (corpus, damaged file, new content or None to delete it, expected in the message, piece to read or None to list)
CHORD = "2006/MIDI-Unprocessed_01_R1_2006_01-09_ORIG_MID--AUDIO_01_R1_2006_01_Track01_wav"
MUSICNET_HEADER = "start_time,end_time,instrument,note,start_beat,end_beat,note_value\n"
DAMAGE = {
    "no audio": ("maestro", f"{CHORD}.wav", None, "no such file", CHORD.replace("/", "_")),
    "corrupt audio": ("maestro", f"{CHORD}.wav", "RIFF", "flac", CHORD.replace("/", "_")),
    "corrupt MIDI": ("maestro", f"{CHORD}.midi", "MThd", "header", CHORD.replace("/", "_")),
    "table without columns": ("maestro", "maestro-v3.0.0.csv", "a,b\n1,2\n", "split, midi_filename", None),
    "empty table": ("groove", "info.csv", "", "id, midi_filename", None),
    "table cut short": ("groove", "info.csv", "id,midi_filename,audio_filename,split\na,b\n", "row 1", None),
    "table that is not text": ("groove", "info.csv", b"\xff\xfe\x00", "'utf-8'", None),
    "table with another split": (
        "groove", "info.csv", "id,midi_filename,audio_filename,split\na,a.mid,a.wav,valid\n", "'valid'", None,
    ),
    "no labels": ("musicnet", "train_labels/1727.csv", None, "No such file", "1727"),
    "no recording": ("musicnet", "train_data/1727.wav", None, "no such file", "1727"),
    "labels without rows": ("musicnet", "train_labels/1727.csv", MUSICNET_HEADER, "no notes", "1727"),
    "labels of words": (
        "musicnet", "train_labels/1727.csv", f"{MUSICNET_HEADER}a,b,c,d,e,f,g\n", "ValueError", "1727",
    ),
    "instrument 0": (
        "musicnet", "train_labels/1727.csv", f"{MUSICNET_HEADER}0,9,0,60,0,0,\n", " 60, -1", "1727",
    ),
    "labels past the audio": (
        "musicnet", "train_labels/1727.csv", f"{MUSICNET_HEADER}441000,442000,1,60,0,0,\n", "10.0 s", "1727",
    ),
    "JAMS that is not JSON": (
        "guitarset", "annotation/00_BN1-129-Eb_comp.jams", "{", "JSONDecodeError", "00_BN1-129-Eb_comp_mic",
    ),
    "JAMS of something else": (
        "guitarset", "annotation/00_BN1-129-Eb_comp.jams", "[]", "TypeError", "00_BN1-129-Eb_comp_mic",
    ),
    "JAMS without notes": (
        "guitarset", "annotation/00_BN1-129-Eb_comp.jams", '{"annotations": []}', "no notes", "00_BN1-129-Eb_comp_mic",
    ),
    "JAMS of no excerpt": ("guitarset", "annotation/00_mine.jams", "{}", "00_BN1-129-Eb_comp.jams", None),
    "no Notes": ("urmp", "01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt", None, "No such file", "01_Jupiter_vn_vc"),
    "Notes of two columns": (
        "urmp", "01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt", "0.1 440\n", "ValueError", "01_Jupiter_vn_vc",
    ),
    "Notes without pitch": (
        "urmp", "01_Jupiter_vn_vc/Notes_1_vn_01_Jupiter.txt", "0.1 0 1\n", "ValueError", "01_Jupiter_vn_vc",
    ),
    "song without metadata": ("slakh", "train/Track00001/metadata.yaml", None, "No such file", "Track00001"),
    "metadata that is no YAML": ("slakh", "train/Track00001/metadata.yaml", "a: [", " metadata", "Track00001"),
    "metadata without stems": ("slakh", "train/Track00001/metadata.yaml", "UUID: a\n", "'stems'", "Track00001"),
    "metadata of text": ("slakh", "train/Track00001/metadata.yaml", "stems\n", " metadata", "Track00001"),
    "no mix": ("slakh", "train/Track00001/mix.flac", None, "no such file", "Track00001"),
    "no MIDI of a stem": ("slakh", "train/Track00001/MIDI/S00.mid", None, "exist", "Track00001"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "path", "content", "why", "piece"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_file_is_named_in_one_line(name, path, content, why, piece, tmp_path):
    root = WRITERS[name](tmp_path)
    path = root / path
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = reading_error(root, name, piece) if piece else input_error_of(lambda: corpus(name).entries(root))
    assert str(path) in message
    assert why in message


@pytest.mark.parametrize("name", ["maestro", "groove"])
def test_download_without_audio_is_refused(name, tmp_path):
    root = WRITERS[name](tmp_path)
    for audio in root.rglob("*.wav"):
        audio.unlink()
    message = input_error_of(lambda: corpus(name).entries(root))
    assert str(root) in message
    assert corpus(name).homepage in message


# ---- single corpora


def test_maestro_splits_notes_and_audio(corpus_roots):
    recordings = read_all(corpus_roots["maestro"], "maestro")
    entries = {entry.name: entry.split for entry in corpus("maestro").entries(corpus_roots["maestro"])}
    assert entries == {name.replace("/", "_"): split for name, (split, _) in writer.MAESTRO.items()}
    for name, (_, notes) in writer.MAESTRO.items():
        recording = recordings[name.replace("/", "_")]
        expected = [(start, min(end, writer.SECONDS), *rest, 0) for start, end, *rest in notes]
        assert note_rows(recording.notes) == sorted(expected)
        assert len(recording.audio) == SAMPLES
        np.testing.assert_array_equal(recording.audio, read_audio(corpus_roots["maestro"] / f"{name}.wav"))


def test_maestro_notes_are_extended_by_the_pedal(tmp_path):
    import mido

    root = writer.write_maestro(tmp_path)
    name = next(iter(writer.MAESTRO))
    file = mido.MidiFile(ticks_per_beat=1000)
    track = file.add_track()  # 120 beats a minute: 2000 ticks a second
    track += [
        mido.Message("control_change", control=64, value=127, time=0),
        mido.Message("note_on", note=60, velocity=80, time=500),
        mido.Message("note_off", note=60, time=500),
        mido.Message("control_change", control=64, value=0, time=1500),
    ]
    file.save(root / f"{name}.midi")
    assert note_rows(read_all(root, "maestro")[name.replace("/", "_")].notes) == [(0.25, 1.25, 60, 80, 0)]


def test_groove_splits_and_general_midi_drums(corpus_roots, caplog):
    kind = corpus("groove")
    entries = kind.entries(corpus_roots["groove"])
    assert [line.split(" of 4 ")[0].split()[-1] for line in caplog.messages] == ["1"]
    heard = dict(itertools.islice(writer.GROOVE.items(), 3))
    assert {entry.name: entry.split for entry in entries} == {
        name.replace("/", "_"): split for name, (split, _) in heard.items()
    }
    general_midi = {22: 42, 26: 46, 58: 43}
    for entry, (_, notes) in zip(entries, heard.values(), strict=True):
        expected = [(start, end, general_midi.get(key, key), v, None) for start, end, key, v in notes]
        found = note_rows(kind.read(entry).notes)
        assert [row[2:] for row in found] == [row[2:] for row in sorted(expected)]
        times = [row[:2] for row in sorted(expected)]
        np.testing.assert_allclose([row[:2] for row in found], times, atol=1e-9)


def test_guitarset_splits_and_notes(corpus_roots):
    recordings = read_all(corpus_roots["guitarset"], "guitarset")
    splits = {entry.name: entry.split for entry in corpus("guitarset").entries(corpus_roots["guitarset"])}
    assert splits == {
        "00_BN1-129-Eb_comp_mic": "train",
        "03_Jazz2-110-Bb_solo_mic": "train",
        "05_Rock3-148-C#_comp_mic": "validation",
    }
    assert note_rows(recordings["00_BN1-129-Eb_comp_mic"].notes) == [
        (0.1, 0.6, 40, reading.VELOCITY, 24),
        (0.1, 0.1 + 0.7, 50, reading.VELOCITY, 24),
        (1.0, 1.5, 50, reading.VELOCITY, 24),
    ]
    assert note_rows(recordings["03_Jazz2-110-Bb_solo_mic"].notes) == [
        (0.761230839, 0.761230839 + 0.25, 64, reading.VELOCITY, 24)
    ]


def test_guitarset_audio_option_selects_recordings(corpus_roots):
    root = corpus_roots["guitarset"]
    mic, mix, both = (read_all(root, "guitarset", audio=audio) for audio in ("mic", "pickup_mix", "both"))
    assert both.keys() == mic.keys() | mix.keys()
    for folder, recordings in (("audio_mono-mic", mic), ("audio_mono-pickup_mix", mix)):
        assert len(recordings) == len(writer.GUITARSET)
        for name, recording in recordings.items():
            np.testing.assert_array_equal(recording.audio, read_audio(root / folder / f"{name}.wav"))
            np.testing.assert_array_equal(recording.audio, both[name].audio)
    message = input_error_of(lambda: corpus("guitarset", audio="hex"))
    assert "audio is 'hex'" in message


def test_musicnet_splits_and_notes(corpus_roots):
    recordings = read_all(corpus_roots["musicnet"], "musicnet")
    entries = corpus("musicnet").entries(corpus_roots["musicnet"])
    assert {entry.name: entry.split for entry in entries} == {"1727": "train", "1733": "validation", "1759": "test"}
    for piece, labels in writer.MUSICNET.items():
        found = note_rows(recordings[piece.split("/")[1]].notes)
        expected = [
            (start / 44_100, min(end / 44_100, writer.SECONDS), note, reading.VELOCITY, instrument - 1)
            for start, end, instrument, note in labels
        ]
        assert found == sorted(expected)


def test_musicnet_label_times_use_the_rate_of_the_file(tmp_path):
    root = writer.write_musicnet(tmp_path)
    writer.write_samples(root / "train_data" / "1733.wav", writer.tone(60, 22_050), 22_050)
    assert note_rows(read_all(root, "musicnet")["1733"].notes) == [(0.0, 0.5, 60, reading.VELOCITY, 0)]


def test_urmp_splits_stems_and_notes(corpus_roots):
    programs = {"vn": 40, "vc": 42, "fl": 73, "cl": 71, "tpt": 56, "hn": 60, "tbn": 57, "tba": 58}
    keys = {440.0: 69, 493.9: 71, 131.2: 48, 880.0: 81, 223.0: 57} | {110.0 * 2 ** (i / 12): 45 + i for i in range(5)}
    recordings = read_all(corpus_roots["urmp"], "urmp")
    entries = corpus("urmp").entries(corpus_roots["urmp"])
    assert [entry.split for entry in entries] == ["validation", "train", "train"]
    assert [entry.name for entry in entries] == list(writer.URMP)
    for name, parts in writer.URMP.items():
        for stem, (code, seconds, notes) in zip(recordings[name].stems, parts, strict=True):
            assert note_rows(stem.notes) == [
                (onset, onset + duration, keys[pitch], reading.VELOCITY, programs[code])
                for onset, pitch, duration in notes
            ]
            heard = round(seconds * SAMPLE_RATE)
            assert (stem.audio[heard:] == 0).all()
            assert np.abs(stem.audio[:heard]).max() > 0.05


def test_urmp_sorts_ten_parts_numerically(tmp_path):
    name = "03_Dance_" + "_".join(["fl"] * 10)
    for i in range(1, 11):
        writer.write_samples(tmp_path / name / f"AuSep_{i}_fl_03_Dance.wav", writer.tone(60 + i, 48_000), 48_000)
        writer.write_text(tmp_path / name / f"Notes_{i}_fl_03_Dance.txt", f"0.5 {440 * 2 ** (i / 12)} 0.5\n")
    writer.write_samples(tmp_path / name / f"AuMix_{name}.wav", writer.tone(60, 48_000), 48_000)
    assert [stem.notes.pitch[0] for stem in read_all(tmp_path, "urmp")[name].stems] == list(range(70, 80))


def test_urmp_missing_part_is_an_error(tmp_path):
    root = writer.write_urmp(tmp_path)
    (root / "03_Dance_fl_cl" / "AuSep_2_cl_03_Dance.wav").unlink()
    message = reading_error(root, "urmp", "03_Dance_fl_cl")
    assert re.match(rf"{root / '03_Dance_fl_cl'} .*\b1 AuSep_\*\.wav.*\b2 .*\bvn, va, ", message)


def test_urmp_unknown_instrument_is_an_error(tmp_path):
    root = writer.write_urmp(tmp_path)
    (root / "03_Dance_fl_cl").rename(root / "03_Dance_fl_kazoo")
    assert re.search(r"\b2 AuSep_\*\.wav.*\b0 .*\bvn, ", reading_error(root, "urmp", "03_Dance_fl_kazoo"))


def test_urmp_instruments_come_from_the_folder_name(tmp_path):
    """The files of piece 15, for two trumpets and a trombone, are all named as trumpets."""
    name = "15_Surprise_tpt_tpt_tbn"
    for i, pitch in enumerate((72, 67, 48), start=1):
        writer.write_samples(tmp_path / name / f"AuSep_{i}_tpt_15_Surprise.wav", writer.tone(pitch, 48_000), 48_000)
        hz = 440 * 2 ** ((pitch - 69) / 12)
        writer.write_text(tmp_path / name / f"Notes_{i}_tpt_15_Surprise.txt", f"0.5 {hz} 0.5\n")
    writer.write_samples(tmp_path / name / f"AuMix_{name}.wav", writer.tone(60, 48_000), 48_000)
    stems = read_all(tmp_path, "urmp")[name].stems
    assert [(int(stem.notes.program[0]), int(stem.notes.pitch[0])) for stem in stems] == [(56, 72), (56, 67), (57, 48)]


# The paper's program for each of Slakh's own classes (classes_strict.json of slakh-generation, less 1).
SLAKH_CLASSES = {
    0: [0, 1, 3, 6], 4: [2, 4, 5, 7], 8: range(8, 16), 16: range(16, 24), 24: [24, 25], 26: [26, 27, 28, 31],
    29: [29, 30], 32: [32], 33: range(33, 38), 40: [40], 41: [41], 42: [42], 43: [43], 46: [46], 47: [47],
    48: [44, 45, 48, 49], 50: [50, 51], 52: [52, 53, 54], 55: [55], 56: [56, 59], 57: [57], 58: [58], 60: [60],
    61: [61], 64: [64, 65], 66: [66], 67: [67], 68: [68], 69: [69], 70: [70], 71: [71], 73: range(72, 80),
    80: range(80, 88), 88: range(88, 96),
}  # fmt: skip


def test_slakh_class_programs_equal_the_paper():
    from spectrodiff.data.builders.slakh import class_program

    assert len(SLAKH_CLASSES) == 34
    for program, members in SLAKH_CLASSES.items():
        assert {class_program(member) for member in members} == {program}
    # Programs outside all classes: synth bass and synth brass join their families, the rest the last class.
    assert [class_program(program) for program in (38, 39, 62, 63, 96, 127)] == [33, 33, 61, 61, 88, 88]


def test_slakh_splits_stems_and_notes(corpus_roots):
    recordings = read_all(corpus_roots["slakh"], "slakh")
    entries = corpus("slakh").entries(corpus_roots["slakh"])
    assert [(entry.name, entry.split) for entry in entries] == [
        ("Track00001", "train"), ("Track00003", "train"), ("Track00004", "train"), ("Track01501", "validation"),
        ("Track01876", "test"),
    ]  # fmt: skip
    programs = {"S00": 33, "S01": None, "S02": 29, "S03": 0, "S05": 26, "S06": 48}  # S04 was never rendered
    for song, sources in writer.SLAKH.items():
        if song.startswith("omitted"):
            continue
        recording = recordings[song.split("/")[1]]
        assert len(recording.audio) == SAMPLES
        np.testing.assert_array_equal(recording.audio, read_audio(corpus_roots["slakh"] / song / "mix.flac"))
        played = [name for name in sources if name in programs]
        assert [note_rows(stem.notes)[0][4] for stem in recording.stems] == [programs[name] for name in played]
        for name, stem in zip(played, recording.stems, strict=True):
            file = note_rows(read_midi(corpus_roots["slakh"] / song / "MIDI" / f"{name}.mid"))
            assert note_rows(stem.notes) == [(*note[:4], programs[name]) for note in file]
            if name == "S02":  # this stem is half a second shorter than the mix
                assert (stem.audio[-SAMPLES // 4 :] == 0).all()


def test_slakh_reads_stems_flagged_as_not_rendered(tmp_path):
    root = writer.write_slakh(tmp_path)
    song = root / "train" / "Track00003"
    metadata = song / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("audio_rendered: true", "audio_rendered: false"))
    assert len(read_all(root, "slakh")["Track00003"].stems) == 3


def test_slakh_missing_stem_is_an_error(tmp_path):
    root = writer.write_slakh(tmp_path)
    stem = root / "train" / "Track00003" / "stems" / "S01.flac"
    stem.unlink()
    assert reading_error(root, "slakh", "Track00003").startswith(f"{stem} ")


def test_slakh_song_without_audio_is_an_error(tmp_path):
    root = writer.write_slakh(tmp_path)
    song = root / "train" / "Track00003"
    metadata = song / "metadata.yaml"
    metadata.write_text(metadata.read_text().replace("audio_rendered: true", "audio_rendered: false"))
    shutil.rmtree(song / "stems")
    assert re.match(rf"{song} .*\bstems/", reading_error(root, "slakh", "Track00003"))


def test_slakh_submixes_are_subsets_of_a_song(corpus_roots):
    whole = read_all(corpus_roots["slakh"], "slakh")
    mixes = read_all(corpus_roots["slakh"], "slakh", submixes=12)
    assert [name for name in mixes if "_" not in name] == ["Track01501", "Track01876"]  # only train songs are mixed
    assert len(mixes) == 2 + 3 * 12
    for name, mix in mixes.items():
        song = whole[name.split("_")[0]]
        stems = {stem.audio.tobytes(): note_rows(stem.notes) for stem in song.stems}
        if len(mix.audio) == len(song.audio):  # otherwise the stems are padded to the longest of them
            assert all(stems[stem.audio.tobytes()] == note_rows(stem.notes) for stem in mix.stems)
        assert len(mix.stems) >= min(4, len(song.stems))
        assert len({stem.audio.tobytes() for stem in mix.stems}) == len(mix.stems)
    sizes = collections.Counter(len(mixes[f"Track00001_{k}"].stems) for k in range(12))
    assert sizes.keys() == {4, 5, 6}
    chosen = {tuple(note_rows(stem.notes)[0] for stem in mixes[f"Track00001_{k}"].stems) for k in range(12)}
    assert len(chosen) >= 5  # out of 22 possible subsets
    assert all(len(mixes[f"Track00003_{k}"].stems) == 3 for k in range(12))


def test_slakh_submixes_depend_on_seed_song_and_number_alone(corpus_roots):
    def instruments(kind, entries):
        return {e.name: tuple(tuple(note_rows(s.notes)) for s in kind.read(e).stems) for e in entries if "_" in e.name}

    kind = corpus("slakh", submixes=6)
    entries = kind.entries(corpus_roots["slakh"])
    first = instruments(kind, entries)
    assert instruments(pickle.loads(pickle.dumps(kind)), entries[::-1]) == first
    fewer = corpus("slakh", submixes=2)
    assert instruments(fewer, fewer.entries(corpus_roots["slakh"])).items() <= first.items()
    by_song = [[first[f"{song}_{k}"] for k in range(6)] for song in ("Track00001", "Track00004")]
    assert by_song[0] != by_song[1]  # although both songs have the same stems
    other = dataclasses.replace(kind, seed=1)
    assert instruments(other, entries) != first


def test_slakh_invalid_options_raise_input_error():
    assert "submixes is -1" in input_error_of(lambda: corpus("slakh", submixes=-1))
    assert "seed is -1" in input_error_of(lambda: corpus("slakh", seed=-1))


def test_cerberus4_has_all_quartets_of_each_song(corpus_roots):
    recordings = read_all(corpus_roots["cerberus4"], "cerberus4")
    quartets = ["S00_S01_S02_S03", "S00_S01_S05_S03"]  # bass, drums, one of two guitars, piano
    songs = [song.split("/") for song in writer.SLAKH if "omitted" not in song and "00003" not in song]
    assert [(entry.split, entry.name) for entry in corpus("cerberus4").entries(corpus_roots["cerberus4"])] == [
        (split, f"{song}_{quartet}") for split, song in songs for quartet in quartets
    ]
    for name, recording in recordings.items():
        assert [note_rows(stem.notes)[0][4] for stem in recording.stems] == [32, None, 24, 0]
        song, *sources = name.split("_")
        split = next(split for split, other in songs if other == song)
        for source, stem in zip(sources, recording.stems, strict=True):
            heard = read_audio(corpus_roots["cerberus4"] / split / song / "stems" / f"{source}.flac")
            np.testing.assert_array_equal(stem.audio[: len(heard)], heard)
            assert (stem.audio[len(heard) :] == 0).all()
        np.testing.assert_array_equal(recording.audio, np.sum([stem.audio for stem in recording.stems], axis=0))


def test_miniature_corpora_have_the_original_formats(corpus_roots):
    """Independent readers check JAMS and audio, so that an error of the writer cannot hide one of our reader."""
    jams = json.loads((corpus_roots["guitarset"] / "annotation" / "00_BN1-129-Eb_comp.jams").read_text())
    assert collections.Counter(a["namespace"] for a in jams["annotations"]) == {"note_midi": 6, "pitch_contour": 6}
    assert soundfile.info(corpus_roots["slakh"] / "test" / "Track01876" / "mix.flac").samplerate == 44_100
    assert soundfile.info(next(corpus_roots["urmp"].glob("01_*/AuMix_*.wav"))).samplerate == 48_000


# ---- items that are known to be bad


def test_guitarset_skips_excerpts_with_late_labels(tmp_path):
    root = writer.write_guitarset(tmp_path)
    late = "04_Jazz1-200-B_comp"
    for path in [path for path in root.rglob("00_BN1-129-Eb_comp*") if path.is_file()]:
        shutil.copy(path, path.with_name(path.name.replace("00_BN1-129-Eb_comp", late)))
    names = {entry.name for entry in corpus("guitarset", audio="both").entries(root)}
    assert names == {f"{name}_{kind}" for name in writer.GUITARSET for kind in ("mic", "mix")}
    assert corpus("guitarset").left_out(root) == {late: "its labels are 0.31 s late"}
    everything = corpus("guitarset", skip_known_bad=False)
    assert {entry.name for entry in everything.entries(root)} == {f"{name}_mic" for name in (*writer.GUITARSET, late)}
    assert everything.left_out(root) == {}


@pytest.fixture
def slakh_with_bad_stem(tmp_path):
    """Miniature Slakh with a song whose stem S00 is listed as inaudible."""
    root = writer.write_slakh(tmp_path)
    (root / "train" / "Track00001").rename(root / "train" / "Track00385")
    return root


def test_slakh_skips_bad_stems(slakh_with_bad_stem):
    song = slakh_with_bad_stem / "train" / "Track00385"
    kept = ["S01", "S02", "S03", "S05", "S06"]
    found, whole = (read_all(slakh_with_bad_stem, "slakh", skip_known_bad=skip) for skip in (True, False))
    assert found.keys() == whole.keys()
    heard = {name: read_audio(song / "stems" / f"{name}.flac") for name in kept}
    recording = found["Track00385"]
    for name, stem in zip(kept, recording.stems, strict=True):
        length = min(len(heard[name]), len(stem.audio))
        np.testing.assert_array_equal(stem.audio[:length], heard[name][:length])
    np.testing.assert_array_equal(recording.audio, np.sum([stem.audio for stem in recording.stems], axis=0))
    assert len(whole["Track00385"].stems) == 6
    np.testing.assert_array_equal(whole["Track00385"].audio, read_audio(song / "mix.flac"))
    for name in found.keys() - {"Track00385"}:
        np.testing.assert_array_equal(found[name].audio, whole[name].audio)
    assert corpus("slakh").left_out(slakh_with_bad_stem) == {"Track00385 S00": "its notes are not audible"}
    assert corpus("slakh", skip_known_bad=False).left_out(slakh_with_bad_stem) == {}


def test_submixes_and_quartets_skip_bad_stems(slakh_with_bad_stem):
    kind = corpus("slakh", submixes=8)
    mixes = [kind.read(entry) for entry in kind.entries(slakh_with_bad_stem) if entry.name.startswith("Track00385")]
    assert len(mixes) == 8
    assert all(4 <= len(mix.stems) <= 5 for mix in mixes)
    assert not any((mix.notes.program == 33).any() for mix in mixes)  # S00 is the bass
    quartets, all_quartets = (corpus("cerberus4", skip_known_bad=skip) for skip in (True, False))
    assert not any("Track00385" in entry.name for entry in quartets.entries(slakh_with_bad_stem))
    assert sum("Track00385" in entry.name for entry in all_quartets.entries(slakh_with_bad_stem)) == 2
    assert quartets.left_out(slakh_with_bad_stem) == corpus("slakh").left_out(slakh_with_bad_stem)


def test_known_bad_items_are_named_as_in_the_corpora():
    assert all(re.fullmatch(r"0[0-5]_\w+[123]-\d+-\S+_comp", name) for name in known_bad.GUITARSET)
    assert all(re.fullmatch(r"Track\d{5} S\d\d", " ".join(name)) for name in known_bad.SLAKH)
