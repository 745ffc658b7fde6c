"""Corpora in miniature, each file where its authors have it and as they write it; a few seconds of tones to hear.

Every writer returns the corpus's own folder. What was written is in the tables beside it, for tests to compare.
"""

import csv
import json
import pathlib

import numpy as np
import soundfile

from spectrodiff.notes.midi import write_midi
from spectrodiff.notes.sequence import Notes

SECONDS = 2.0


def tone(pitch: float, rate: int, seconds: float = SECONDS) -> np.ndarray:
    """16 bit samples that rise and fall within 10 ms, so that they can be resampled apart or together."""
    time = np.arange(round(seconds * rate)) / rate
    edge = np.clip(np.minimum(time, seconds - time) / 0.01, 0, 1)
    return np.rint(2000 * edge * np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)).astype(np.int16)


def write_samples(path: pathlib.Path, samples: np.ndarray, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")


def write_text(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_table(path: pathlib.Path, header: str, rows: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_keys(path: pathlib.Path, rows: list[tuple], program: int | None) -> None:
    """A MIDI file of (start, end, pitch, velocity) on one program, or on drums."""
    start, end, pitch, velocity = (np.array(column) for column in zip(*rows, strict=True))
    notes = Notes(
        start=start.astype(float),
        end=end.astype(float),
        pitch=pitch.astype(np.int32),
        velocity=velocity.astype(np.int32),
        program=np.full(len(rows), program or 0, np.int32),
        is_drum=np.full(len(rows), program is None),
        total_time=float(end.max()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_midi(notes, path)


# MAESTRO: split and notes of each performance. The second has a chord of which one note outlasts the audio.
MAESTRO = {
    "2018/MIDI-Unprocessed_Chamber3_MID--AUDIO_10_R3_2018_wav--1": ("train", [(0.25, 0.75, 60, 90), (1, 1.5, 64, 30)]),
    "2006/MIDI-Unprocessed_01_R1_2006_01-09_ORIG_MID--AUDIO_01_R1_2006_01_Track01_wav": (
        "validation",
        [(0.5, 3.0, 48, 70), (0.5, 1.0, 55, 71)],
    ),
    "2011/MIDI-Unprocessed_02_R1_2011_MID--AUDIO_R1-D1_02_Track02_wav": ("test", [(0.0, 0.125, 72, 127)]),
}


def write_maestro(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "maestro-v3.0.0"
    rows = []
    for name, (split, notes) in MAESTRO.items():
        write_keys(root / f"{name}.midi", notes, 0)
        write_samples(root / f"{name}.wav", np.stack([tone(60, 44_100), tone(64, 44_100)], axis=1), 44_100)
        rows.append(["Frédéric Chopin", "Étude, Op. 10", split, name[:4], f"{name}.midi", f"{name}.wav", SECONDS])
    header = "canonical_composer,canonical_title,split,year,midi_filename,audio_filename,duration"
    write_table(root / "maestro-v3.0.0.csv", header, rows)
    return root


# Slakh: split of each song, and its sources: (program, drums, has audio, seconds, notes).
_BAND = {
    "S00": (33, False, True, 2.0, [(0.0, 0.5, 40, 80)]),
    "S01": (128, True, True, 2.0, [(0.0, 0.1, 36, 100), (0.5, 0.6, 38, 100)]),
    "S02": (30, False, True, 1.5, [(0.25, 1.0, 52, 90)]),
    "S03": (1, False, True, 2.0, [(0.5, 1.75, 60, 60)]),
    "S04": (103, False, False, 2.0, [(0.0, 2.0, 70, 60)]),  # an effect that no patch plays
    "S05": (26, False, True, 2.5, [(1.0, 1.5, 64, 90)]),
    "S06": (45, False, True, 2.0, [(1.0, 1.5, 72, 50)]),
}
SLAKH = {
    "train/Track00001": _BAND,
    "train/Track00003": {name: _BAND[name] for name in ("S00", "S01", "S03")},
    "train/Track00004": _BAND,
    "validation/Track01501": _BAND,
    "test/Track01876": _BAND,
    "omitted/Track00002": _BAND,
}


def write_slakh(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "slakh2100_flac_redux"
    for song, sources in SLAKH.items():
        mix = np.zeros(round(SECONDS * 44_100), np.int16)
        stems = []
        for name, (program, is_drum, rendered, seconds, notes) in sources.items():
            stems.append(
                f"  {name}:\n    audio_rendered: {str(rendered).lower()}\n    inst_class: Any\n"
                f"    is_drum: {str(is_drum).lower()}\n    midi_program_name: Any\n"
                f"    midi_saved: {str(rendered).lower()}\n    plugin_name: any.nkm\n    program_num: {program}\n"
            )
            write_keys(root / song / "MIDI" / f"{name}.mid", notes, None if is_drum else program)
            if rendered:
                samples = tone(notes[0][2], 44_100, seconds)
                write_samples(root / song / "stems" / f"{name}.flac", samples, 44_100)
                mix[: len(samples)] += samples[: len(mix)]
        write_samples(root / song / "mix.flac", mix, 44_100)
        write_text(
            root / song / "metadata.yaml",
            "UUID: 1a81ae092884234f3264e2f45927f00a\naudio_dir: stems\nmidi_dir: MIDI\nnormalization_factor: -13.0\n"
            f"normalized: true\noverall_gain: 0.18\nstems:\n{''.join(stems)}target_peak: -1.0\n",
        )
    return root


# GuitarSet: notes by string, (time, duration, fractional pitch).
GUITARSET = {
    "00_BN1-129-Eb_comp": {0: [(0.1, 0.5, 40.4)], 2: [(0.1, 0.7, 49.6), (1.0, 0.5, 50.01)]},
    "03_Jazz2-110-Bb_solo": {5: [(0.761230839, 0.25, 64.49)]},
    "05_Rock3-148-C#_comp": {1: [(0.5, 0.5, 44.98)]},
}


def write_guitarset(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "GuitarSet"
    for name, strings in GUITARSET.items():
        annotations = []
        for string in range(6):
            about = {"annotation_metadata": {"data_source": str(string)}, "sandbox": {}, "time": 0, "duration": SECONDS}
            contour = {"time": [], "duration": [], "value": [], "confidence": []}
            annotations.append({"namespace": "pitch_contour", "data": contour} | about)
            observed = [
                {"time": time, "duration": duration, "value": value, "confidence": None}
                for time, duration, value in strings.get(string, [])
            ]
            annotations.append({"namespace": "note_midi", "data": observed} | about)
        content = {"annotations": annotations, "file_metadata": {"title": name, "duration": SECONDS}, "sandbox": {}}
        write_text(root / "annotation" / f"{name}.jams", json.dumps(content, indent=2))
        write_samples(root / "audio_mono-mic" / f"{name}_mic.wav", tone(60, 44_100), 44_100)
        write_samples(root / "audio_mono-pickup_mix" / f"{name}_mix.wav", tone(72, 44_100), 44_100)
    return root


# MusicNet: labels by official split and piece, (start, end in samples, instrument, note).
MUSICNET = {
    "train/1727": [(9182, 90_000, 41, 67), (9182, 44_100, 61, 55)],
    "train/1733": [(0, 22_050, 1, 60)],
    "test/1759": [(441, 88_200, 74, 80)],
}


def write_musicnet(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "musicnet"
    header = "start_time,end_time,instrument,note,start_beat,end_beat,note_value"
    for piece, labels in MUSICNET.items():
        split, name = piece.split("/")
        rows = [[*label, 4.0, 1.5, "Dotted Quarter"] for label in labels]
        write_table(root / f"{split}_labels" / f"{name}.csv", header, rows)
        write_samples(root / f"{split}_data" / f"{name}.wav", tone(60, 44_100), 44_100)
    return root


# URMP: parts by piece, (code, seconds, lines of onset, Hz and duration).
URMP = {
    "01_Jupiter_vn_vc": [("vn", 2.0, [(0.1, 440.0, 0.5), (0.7, 493.9, 1.0)]), ("vc", 1.75, [(0.2, 131.2, 1.5)])],
    "03_Dance_fl_cl": [("fl", 2.0, [(0.25, 880.0, 0.25)]), ("cl", 2.25, [(0.5, 223.0, 1.0)])],
    "43_Chorale_tpt_tpt_hn_tbn_tba": [
        (code, 2.0, [(0.5, 110.0 * 2 ** (i / 12), 0.5)]) for i, code in enumerate(["tpt", "tpt", "hn", "tbn", "tba"])
    ],
}


def write_urmp(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "Dataset"
    for name, parts in URMP.items():
        number, title, *_ = name.split("_")
        mix = np.zeros(round(SECONDS * 48_000), np.int16)
        for i, (code, seconds, notes) in enumerate(parts, start=1):
            part = f"{i}_{code}_{number}_{title}"
            samples = tone(69 + 12 * np.log2(notes[0][1] / 440), 48_000, seconds)
            write_samples(root / name / f"AuSep_{part}.wav", samples, 48_000)
            mix[: len(samples)] += samples[: len(mix)]
            write_text(root / name / f"Notes_{part}.txt", "".join("\t".join(map(str, note)) + "\n" for note in notes))
            write_text(root / name / f"F0s_{part}.txt", "0.023\t440.0\n")
        write_samples(root / name / f"AuMix_{name}.wav", mix, 48_000)
        write_keys(root / name / f"Sco_{name}.mid", [(0.0, 1.0, 60, 90)], 0)  # a score that knows only pianos
    write_text(root / "Supplementary_Files" / "readme.txt", "")
    return root


# Groove: split and notes by performance; the last was published without audio.
GROOVE = {
    "drummer1/eval_session/1": ("test", [(0.0, 0.1, 36, 100), (0.5, 0.6, 22, 60)]),
    "drummer1/session1/2": ("train", [(0.25, 0.35, 38, 90), (0.25, 0.35, 26, 80), (1.0, 1.1, 58, 70)]),
    "drummer7/session3/149": ("validation", [(0.0, 0.1, 51, 40)]),
    "drummer5/session2/9": ("train", [(0.0, 0.1, 36, 40)]),
}


def write_groove(folder: pathlib.Path) -> pathlib.Path:
    root = folder / "groove"
    rows = []
    for i, (name, (split, notes)) in enumerate(GROOVE.items()):
        drummer, session, number = name.split("/")
        stem = f"{drummer}/{session}/{number}_funk_138_beat_4-4"
        write_keys(root / f"{stem}.mid", notes, None)
        audio = "" if i == len(GROOVE) - 1 else f"{stem}.wav"
        if audio:
            write_samples(root / audio, tone(40, 44_100), 44_100)
        style = [drummer, f"{drummer}/{session}", name, "funk", 138, "beat", "4-4"]
        rows.append([*style, f"{stem}.mid", audio, SECONDS, split])
    header = "drummer,session,id,style,bpm,beat_type,time_signature,midi_filename,audio_filename,duration,split"
    write_table(root / "info.csv", header, rows)
    return root
