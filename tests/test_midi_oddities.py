"""Unusual MIDI files are read like plain files of the same notes, and sound as FluidSynth plays them."""

import pathlib
import subprocess
import sys
import time

import midi_player
import numpy as np
import pytest
from midi_cases import CASES, ORGAN, plain
from midi_correlations import correlation, synthesizers
from midi_writer import control, end, event, note, off, on, program, smf
from optional import needs_synth

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.config import TokenizerConfig
from spectrodiff.data.soundfont import play
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer


@pytest.fixture
def read(tmp_path):
    def read(data: bytes, **options):
        (tmp_path / "song.mid").write_bytes(data)
        return read_midi(tmp_path / "song.mid", **options)

    return read


def rows(notes):
    """(start, end, pitch, velocity, program or "drum"), times in milliseconds."""
    program = [("drum" if d else p) for d, p in zip(notes.is_drum.tolist(), notes.program.tolist(), strict=True)]
    times = (np.round(1000 * column, 6).tolist() for column in (notes.start, notes.end))
    return sorted(zip(*times, notes.pitch.tolist(), notes.velocity.tolist(), program, strict=True), key=str)


@pytest.mark.parametrize("name", CASES)
def test_unusual_file_reads_like_its_plain_equivalent(read, name, capfd):
    odd, expected = CASES[name]
    assert rows(read(odd)) == sorted(((float(start), float(end), *rest) for start, end, *rest in expected), key=str)
    assert rows(read(plain(expected))) == rows(read(odd))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@needs_synth
def test_unusual_files_sound_as_fluidsynth_plays_them(read):
    alike = {name: correlation(read(odd), synthesizers(name)[0]) for name, (odd, _) in CASES.items()}
    assert min(alike.values()) > 0.97, min(alike, key=alike.get)


@needs_synth
def test_channel_volume_matches_fluidsynth_loudness(read):
    """Velocities scaled by volume and expression make a piano as loud as the controllers themselves do."""
    for volume, expression in ((100, 127), (50, 127), (127, 127), (100, 64), (80, 90), (30, 100)):
        controls = control(0, 7, volume) + control(0, 11, expression)
        data = smf(controls + note(0, 1000, 60, 70) + end())
        loudness = np.sqrt(np.mean(midi_player.play(data, 1.0) ** 2))
        ours = np.sqrt(np.mean(play(read(data, channel_volume=True))[:SAMPLE_RATE] ** 2))
        assert 20 * abs(np.log10(ours / loudness)) < 0.6  # in dB; without the scaling, up to 25 dB


def velocities(notes):
    return notes.velocity[np.argsort(notes.start)].tolist()


def test_volume_and_expression_scale_velocities(read):
    track = note(0, 100, 60) + control(0, 7, 50) + note(0, 100, 60) + control(0, 11, 64) + note(0, 100, 60)
    track += control(0, 7, 127) + note(0, 100, 60, 127) + control(0, 11, 127) + note(0, 100, 60, 127)
    track += control(0, 7, 0) + note(0, 100, 60) + control(0, 7, 100) + control(0, 11, 5) + note(0, 100, 60)
    track += control(0, 121, 0) + note(0, 100, 60)
    data = smf(track + end(), note(0, 100, 40, 90, channel=1) + end())
    notes = read(data, channel_volume=True)
    first = notes.pitch == 60
    assert velocities(notes.select(first)) == [80, 40, 20, 81, 127, 1, 3, 80]
    assert velocities(notes.select(~first)) == [90]
    assert velocities(read(data).select(first)) == [80, 80, 80, 127, 127, 80, 80, 80]


def test_expression_change_within_a_note_counts_by_mean_square(read):
    swell = smf(control(0, 11, 0) + on(0, 60, 100) + control(500, 11, 127) + off(500, 60) + end())
    assert velocities(read(swell, channel_volume=True)) == [round(100 / np.sqrt(2))]


def test_default_volume_leaves_velocities_unchanged(read):
    data = smf(control(0, 7, 100) + b"".join(note(1, 7, 60, velocity) for velocity in range(1, 128)) + end())
    assert velocities(read(data, channel_volume=True)) == list(range(1, 128))


def test_tokenizer_config_enables_channel_volume(tmp_path):
    (tmp_path / "song.mid").write_bytes(smf(control(0, 7, 50) + note(0, 500, 60, 80) + end()))
    (tmp_path / "twin.mid").write_bytes(smf(note(0, 500, 60, 40) + end()))
    paper, ours = (NoteTokenizer(TokenizerConfig(velocity_bins=127, channel_volume=on)) for on in (False, True))
    song, twin = (tmp_path / name for name in ("song.mid", "twin.mid"))
    np.testing.assert_array_equal(ours.encode_file(song), paper.encode_file(twin))
    assert (paper.encode_file(song) != paper.encode_file(twin)).any()


def test_ignored_events_are_reported_in_one_line(read):
    messages = []
    bends = event(0, 0xE0, 0, 70) + event(0, 0xE0, 0, 64)  # the second returns to the centre
    settings = control(0, 10, 20) + control(0, 10, 64) + control(0, 0, 8) + control(0, 91, 40) + control(0, 7, 50)
    data = smf(program(0, ORGAN) + bends * 3 + settings + note(0, 500, 60) + event(0, 0x90, 60, 200) + end())
    read(data, tell=messages.append)
    read(data, tell=messages.append, channel_volume=True)
    counts = "pitch bend (3), pan (1), bank (1), reverb and chorus (1)"
    assert [line.split(": ")[-1] for line in messages] == [
        f"{counts}, volume and expression (1), out of range (1)",
        f"{counts}, out of range (1)",
    ]
    assert "\n" not in "".join(messages)
    read(
        smf(program(0, ORGAN) + control(0, 7, 100) + control(0, 64, 127) + note(0, 500, 60) + end()),
        tell=messages.append,
    )
    assert len(messages) == 2


def test_corrupted_files_are_read_or_raise_input_error():
    """Runs in a separate process to measure its peak memory. `python tests/midi_fuzz.py` tries more files."""
    script = pathlib.Path(__file__).with_name("midi_fuzz.py")
    command = [sys.executable, "-W", "error", script, "300", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    slowest, peak = (float(done.stdout.split(word)[1].split()[0]) for word in ("slowest", "peak"))
    assert slowest < 2.0
    assert peak < 1.0


def test_250000_notes_are_read_within_seconds(read):
    track = b"".join(note(1, 7, 30 + i % 60) for i in range(250_000))
    start = time.process_time()
    assert len(read(smf(track + end()))) == 250_000
    assert time.process_time() - start < 10  # 1.1 s on an idle core, but over 5 on a crowded machine
