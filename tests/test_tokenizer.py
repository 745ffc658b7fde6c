"""The tokenizer, compared with sequences written by hand and a slow reference, and round trips through tokens."""

import dataclasses
import math
import pickle
import time

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrodiff.config import TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes, read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer

# Token ids of the published vocabulary with one velocity bin.
OFF, ON, TIE, EOS = 1132, 1133, 1134, 1


def shift(steps):
    return 3 + steps


def pitch(p):
    return 1004 + p


def program(p):
    return 1135 + p


def drum(p):
    return 1263 + p


def notes_of(*rows, total_time=None):
    """Notes from (start, end, pitch, velocity, program) rows; program "drum" is a drum hit."""
    start, end, pitches, velocity, programs = zip(*rows, strict=True) if rows else ((),) * 5
    return Notes(
        start=np.array(start, np.float64),
        end=np.array(end, np.float64),
        pitch=np.array(pitches, np.int32),
        velocity=np.array(velocity, np.int32),
        program=np.array([0 if p == "drum" else p for p in programs], np.int32),
        is_drum=np.array([p == "drum" for p in programs], bool),
        total_time=float(max(end, default=0.0) if total_time is None else total_time),
    )


def windows(notes, on_overflow="error", **config):
    """The tokens of each window without padding, after checking that the padding is zero."""
    rows = NoteTokenizer(TokenizerConfig(**config), on_overflow).encode(notes)
    assert rows.dtype == np.int32
    cut = [row[: list(row).index(EOS) + 1].tolist() for row in rows]
    assert all(not row[len(tokens) :].any() for row, tokens in zip(rows, cut, strict=True))
    return cut


def test_single_note():
    assert windows(notes_of((0.5, 1.0, 60, 80, 5))) == [
        [TIE, shift(50), program(5), ON, pitch(60), shift(100), OFF, pitch(60), EOS]
    ]


def test_note_at_time_zero_has_no_shift():
    assert windows(notes_of((0.0, 1.0, 60, 80, 0))) == [
        [TIE, program(0), ON, pitch(60), shift(100), OFF, pitch(60), EOS]
    ]


def test_no_notes_give_one_empty_window():
    assert windows(notes_of()) == [[TIE, EOS]]


def test_unchanged_program_velocity_and_shift_are_not_repeated():
    notes = notes_of((1, 2, 64, 80, 0), (1, 2, 60, 80, 0), (1.5, 2, 62, 80, 0))
    assert windows(notes)[0] == [
        *[TIE, shift(100), program(0), ON, pitch(60), pitch(64), shift(150), pitch(62)],
        *[shift(200), OFF, pitch(60), pitch(62), pitch(64), EOS],
    ]


def test_note_offs_precede_note_ons_at_the_same_time():
    notes = notes_of(
        (1.0, 2.0, 50, 80, "drum"), (1.0, 2.0, 40, 80, "drum"), (1.0, 2.0, 70, 80, 0), (1.0, 2.0, 30, 80, 9),
        (0.0, 1.0, 61, 80, 9), (0.0, 1.0, 65, 80, 0), (1.0, 2.0, 65, 80, 0),
    )  # fmt: skip
    assert windows(notes)[0] == [
        *[TIE, program(0), ON, pitch(65), program(9), pitch(61)],
        *[shift(100), program(0), OFF, pitch(65), program(9), pitch(61)],
        *[program(0), ON, pitch(65), pitch(70), program(9), pitch(30), drum(40), drum(50)],
        *[shift(200), program(0), OFF, pitch(65), pitch(70), program(9), pitch(30), EOS],
    ]


def test_events_within_a_step_are_ordered_by_exact_time():
    notes = notes_of((0.0, 1.003, 60, 80, 0), (1.001, 2.0, 62, 80, 0))  # both at step 100, the note on first
    assert windows(notes) == [
        [TIE, program(0), ON, pitch(60), shift(100), pitch(62), OFF, pitch(60), shift(200), pitch(62), EOS]
    ]


@pytest.mark.parametrize("program_map", ["full", "midi_class", "flat", "slakh"])
def test_simultaneous_drum_hits_are_sorted_by_kit_then_pitch(program_map):
    notes = notes_of((0.1, 0.2, 36, 80, "drum"), (0.1, 0.2, 50, 80, "drum"), (0.1, 0.2, 51, 80, "drum"))
    kits = dataclasses.replace(notes, program=np.array([7, 5, 0], np.int32))
    assert windows(kits, program_map=program_map) == [[TIE, shift(10), ON, drum(51), drum(50), drum(36), EOS]]


def test_drums_have_no_note_off_and_no_program():
    notes = notes_of((0.1, 0.4, 36, 80, "drum"), (0.2, 0.3, 60, 80, 7))
    assert windows(notes) == [
        [TIE, shift(10), ON, drum(36), shift(20), program(7), pitch(60), shift(30), OFF, pitch(60), EOS]
    ]


def test_tie_section_is_sorted_and_keeps_its_last_program():
    notes = notes_of(
        (0.0, 6.0, 60, 80, 7), (0.0, 6.0, 40, 80, 7), (0.0, 6.0, 90, 80, 3), (0.0, 1.0, 50, 80, 3),
        (5.0, 5.2, 36, 80, "drum"), (5.5, 5.6, 41, 80, 7),
    )  # fmt: skip
    assert windows(notes)[1] == [
        *[program(3), pitch(90), program(7), pitch(40), pitch(60), TIE],
        *[shift(38), ON, pitch(41), shift(48), OFF, pitch(41)],  # still program 7
        *[shift(88), program(3), pitch(90), program(7), pitch(40), pitch(60), EOS],
    ]


def test_events_on_a_window_boundary_belong_to_the_later_window():
    notes = notes_of((1.0, 5.12, 60, 80, 0), (5.12, 6.0, 62, 80, 0))
    assert windows(notes) == [
        [TIE, shift(100), program(0), ON, pitch(60), EOS],
        [program(0), pitch(60), TIE, OFF, pitch(60), ON, pitch(62), shift(88), OFF, pitch(62), EOS],
    ]


def test_times_round_half_to_even():
    notes = notes_of((0.125, 0.375, 60, 80, 0))  # 12.5 and 37.5 steps
    assert windows(notes) == [[TIE, shift(12), program(0), ON, pitch(60), shift(38), OFF, pitch(60), EOS]]


def test_velocity_tokens_with_127_bins():
    notes = notes_of((0.0, 1.0, 60, 1, 0), (0.5, 1.0, 62, 127, 0), (0.75, 1.0, 63, 127, 0))
    v0 = 1132
    assert windows(notes, velocity_bins=127)[0] == [
        *[1260, 1261, v0 + 1, pitch(60), shift(50), v0 + 127, pitch(62), shift(75), pitch(63)],
        *[shift(100), v0, pitch(60), pitch(62), pitch(63), EOS],
    ]


def test_overlapping_notes_of_one_pitch_end_at_the_first_note_off():
    """Active notes are identified by program and pitch only, as in the published code."""
    notes = notes_of((0.0, 6.0, 60, 80, 0), (1.0, 2.0, 60, 80, 0))
    assert windows(notes)[1] == [TIE, shift(88), program(0), OFF, pitch(60), EOS]


def test_zero_length_notes_are_dropped_except_drums():
    notes = notes_of((1.0, 1.0, 60, 80, 0), (2.0, 2.0, 38, 80, "drum"), (0.0, 0.004, 64, 80, 0))
    assert windows(notes) == [[TIE, program(0), ON, pitch(64), OFF, pitch(64), shift(200), ON, drum(38), EOS]]


@pytest.mark.parametrize(
    ("total_time", "count"),
    [(0.0, 1), (5.11, 1), (5.1199, 1), (5.12, 2), (5.13, 2), (10.23, 2), (10.24, 3), (14400.0, 2813)],
)
def test_number_of_windows(total_time, count):
    """A piece that ends exactly with a window gets one more, as the published padding is never empty."""
    assert NoteTokenizer().num_windows(total_time) == count
    assert len(windows(notes_of((0.0, 0.0, 60, 80, 0), total_time=total_time))) == count


def test_ghost_ties_after_the_last_event():
    held = notes_of((0.0, 5.0, 60, 80, 3), (1.0, 4.0, 62, 80, 3), total_time=16.0)
    ghost_window = [program(3), pitch(60), TIE, EOS]
    assert windows(held)[1:] == [ghost_window] * 3
    together = notes_of((0.0, 5.0, 60, 80, 3), (1.0, 5.0, 62, 80, 3), total_time=6.0)  # both end at the last step
    assert windows(together)[1] == [program(3), pitch(60), pitch(62), TIE, EOS]
    by_drum = notes_of((0.0, 4.0, 60, 80, 3), (5.0, 7.0, 38, 80, "drum"))
    assert windows(by_drum)[1] == [TIE, EOS]


def test_no_ties_after_the_last_event_without_ghost_ties():
    held = notes_of((0.0, 5.0, 60, 80, 3), (1.0, 4.0, 62, 80, 3), total_time=16.0)
    assert windows(held, ghost_ties=False)[1:] == [[TIE, EOS]] * 3


def test_note_off_rounded_to_the_end_stays_in_the_last_window():
    notes = notes_of((5.0, 5.1199, 60, 80, 0))
    assert windows(notes) == [[TIE, shift(500), program(0), ON, pitch(60), shift(512), OFF, pitch(60), EOS]]


def test_windows_may_start_at_any_frame():
    notes = notes_of((0.0, 1.0, 60, 80, 0), (0.5, 1.5, 64, 80, 0), total_time=20.0)
    tokenizer = NoteTokenizer()
    timeline = tokenizer.timeline(notes)
    assert tokenizer.window(timeline, 25, frames=30).tolist() == [
        *[program(0), pitch(60), TIE, ON, pitch(64), shift(50), OFF, pitch(60), EOS]
    ]
    assert tokenizer.window(timeline, 26, frames=10).tolist() == [program(0), pitch(60), pitch(64), TIE, EOS]


def test_shift_over_ten_seconds_takes_several_tokens():
    notes = notes_of((0.0, 10.0, 60, 80, 0), (15.0, 25.01, 62, 80, 0), total_time=30.0)
    tokenizer = NoteTokenizer()
    assert tokenizer.window(tokenizer.timeline(notes), 0, frames=1500).tolist() == [
        *[TIE, program(0), ON, pitch(60), shift(1000), OFF, pitch(60), shift(1000), shift(500), ON, pitch(62)],
        *[shift(1000), shift(1000), shift(501), OFF, pitch(62), EOS],
    ]


MAPS = [
    ("full", [program(3), ON, pitch(60), program(6), pitch(60), program(79), pitch(60)]),
    ("midi_class", [program(0), ON, pitch(60), pitch(60), program(72), pitch(60)]),
    ("flat", [ON, pitch(60), pitch(60), pitch(60)]),
    ("slakh", [program(0), ON, pitch(60), program(4), pitch(60), program(73), pitch(60)]),
]


@pytest.mark.parametrize(("program_map", "first"), MAPS, ids=[m for m, _ in MAPS])
def test_program_maps(program_map, first):
    notes = notes_of(*[(0.0, 6.0, 60, 80, p) for p in (3, 6, 79)], (1.0, 2.0, 38, 80, "drum"))
    one, two = windows(notes, program_map=program_map)
    assert one == [TIE, *first, shift(100), drum(38), EOS]
    ties = [t for t in first if t != ON]
    assert two[: len(ties) + 1] == [*ties, TIE]


@pytest.mark.parametrize(("program_map", "others"), [("full", 97), ("midi_class", 96), ("slakh", 88)])
def test_own_programs_are_not_mapped_and_round_trip(program_map, others):
    notes = notes_of((0.0, 6.0, 60, 80, 97), (0.0, 6.0, 60, 80, 98), (1.0, 2.0, 38, 80, "drum"))
    tokenizer = NoteTokenizer(TokenizerConfig(program_map=program_map, own_programs=(98,)))
    one, two = windows(notes, program_map=program_map, own_programs=(98,))
    assert one == [TIE, program(others), ON, pitch(60), program(98), pitch(60), shift(100), drum(38), EOS]
    assert two[:5] == [program(others), pitch(60), program(98), pitch(60), TIE]
    back = tokenizer.decode(tokenizer.encode(notes))
    assert sorted(back.program[~back.is_drum].tolist()) == [others, 98]


def test_slakh_map_rounds_down_to_the_published_programs():
    known = [0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50, 52, 55, 56, 57, 58, 60, 61, 64, 66, 67]
    known += [68, 69, 70, 71, 73, 80, 88]
    for p in range(128):
        tokens = windows(notes_of((0.0, 1.0, 60, 80, p)), program_map="slakh")[0]
        assert tokens[1] == program(max(k for k in known if k <= p))


def reference_window(notes, velocity_bins, program_map, own, start_frame, frames=256):
    """The tokens of a window, computed one event at a time from the paper's description."""
    known = [0, 4, 8, 16, 24, 26, 29, 32, 33, 40, 41, 42, 43, 46, 47, 48, 50, 52, 55, 56, 57, 58, 60, 61, 64, 66, 67]
    known += [68, 69, 70, 71, 73, 80, 88]
    events = []
    for s, e, p, v, prog, is_drum in zip(
        *[a.tolist() for a in (notes.start, notes.end, notes.pitch, notes.velocity, notes.program, notes.is_drum)],
        strict=True,
    ):
        prog = max(k for k in known if k <= prog) if program_map == "slakh" and prog not in own else prog
        events.append((s, True, is_drum, prog, p, math.ceil(velocity_bins * v / 127)))
        if not is_drum:
            events.append((e, False, is_drum, prog, p, 0))
    events.sort(key=lambda e: e[:5])
    steps = [round(e[0] * 100) for e in events]
    end = notes.total_time
    last = start_frame + frames >= int(end * 16000) // 320 + 1
    mine = [i for i, s in enumerate(steps) if s >= 2 * start_frame and (last or s < 2 * (start_frame + frames))]
    before = [i for i, s in enumerate(steps) if s < 2 * start_frame]
    if steps and 2 * start_frame > steps[-1]:
        before = [i for i in before if steps[i] < steps[-1]]
    sounding = set()
    for i in before:
        _, on, is_drum, prog, p, _ = events[i]
        if not is_drum:
            (sounding.add if on else sounding.discard)((prog, p))

    tie = 1132 + velocity_bins + 1
    out, state = [], {}

    def add_token(kind, token):
        if state.get(kind) != token:
            out.append(token)
        state[kind] = token

    def add_program(prog):
        if program_map != "flat":
            add_token("program", tie + 1 + (prog // 8 * 8 if program_map == "midi_class" and prog not in own else prog))

    for prog, p in sorted(sounding):
        add_program(prog)
        out.append(pitch(p))
    out.append(tie)
    now = 0
    for i in mine:
        _, _, is_drum, prog, p, velocity = events[i]
        if steps[i] - 2 * start_frame != now:
            now = steps[i] - 2 * start_frame
            out += [shift(1000)] * (now // 1000) + ([shift(now % 1000)] if now % 1000 else [])
        if not is_drum:
            add_program(prog)
        add_token("velocity", 1132 + velocity)
        out.append(tie + 129 + p if is_drum else pitch(p))
    return [*out, EOS]


# Few pitches and programs, times on and off the grid: many overlaps, ties and roundings.
times = st.one_of(
    st.integers(0, 3000).map(lambda n: n / 200), st.floats(0, 15), st.integers(0, 3).map(lambda n: 5.12 * n)
)
note = st.tuples(times, times, st.integers(58, 62), st.integers(1, 127), st.sampled_from([0, 3, 5, 40, 127, "drum"]))
pieces = st.builds(
    lambda rows, tail: notes_of(
        *[(min(a, b), max(a, b), *rest) for a, b, *rest in rows if a != b],
        total_time=max([0.0, *[max(row[:2]) for row in rows]]) + tail,
    ),
    st.lists(note, max_size=40),
    st.sampled_from([0.0, 0.3, 6.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    pieces,
    st.sampled_from([1, 5, 127]),
    st.sampled_from([(name, ()) for name, _ in MAPS] + [(name, (5, 127)) for name, _ in MAPS if name != "flat"]),
    st.integers(0, 1100),
    st.sampled_from([1, 100, 256, 700]),
)
def test_windows_match_the_reference(notes, velocity_bins, programs, start_frame, frames):
    program_map, own = programs
    tokenizer = NoteTokenizer(TokenizerConfig(velocity_bins, program_map, own_programs=own))
    timeline = tokenizer.timeline(notes)
    expected = reference_window(notes, velocity_bins, program_map, own, start_frame, frames)
    assert tokenizer.window(timeline, start_frame, frames).tolist() == expected
    options = {"velocity_bins": velocity_bins, "program_map": program_map, "own_programs": own}
    for i, tokens in enumerate(windows(notes, **options)):
        assert tokens == reference_window(notes, velocity_bins, program_map, own, 256 * i)


def without_overlaps(rows):
    """Rows without those that overlap an earlier one of the same program and pitch, which tokens cannot represent."""
    kept = []
    for start, length, *voice, velocity in sorted(rows, key=lambda row: row[0]):
        clash = any(v == voice and start < end and (voice[1] != "drum" or start == s) for s, end, v, _ in kept)
        if not clash:
            kept.append((start, start + length, voice, velocity))
    return [(start, end, v[0], velocity, v[1]) for start, end, v, velocity in kept]


steps = st.tuples(
    st.integers(0, 2000),
    st.integers(1, 1200),
    st.integers(30, 33),
    st.sampled_from([0, 8, 80, "drum"]),
    st.integers(1, 127),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=40).map(without_overlaps), st.sampled_from([1, 5, 127]))
def test_notes_on_the_grid_round_trip(rows, velocity_bins):
    tokenizer = NoteTokenizer(TokenizerConfig(velocity_bins))
    notes = notes_of(*[(start / 100, end / 100, *rest) for start, end, *rest in rows])
    back = tokenizer.decode(tokenizer.encode(notes))
    loudest = lambda v: 127 * math.ceil(velocity_bins * v / 127) // velocity_bins  # noqa: E731
    expected = sorted(
        (start, start + 1 if prog == "drum" else end, p, loudest(v), 0 if prog == "drum" else prog, prog == "drum")
        for start, end, p, v, prog in rows
    )
    columns = (
        np.rint(back.start * 100),
        np.rint(back.end * 100),
        back.pitch,
        back.velocity,
        back.program,
        back.is_drum,
    )
    assert [tuple(row) for row in zip(*[c.tolist() for c in columns], strict=True)] == expected
    assert back.total_time == max([e / 100 for _, e, *_ in expected], default=0.0)


@settings(max_examples=100, deadline=None)
@given(pieces)
def test_decoded_onsets_are_within_5_ms(notes):
    tokenizer = NoteTokenizer(TokenizerConfig(127))
    back = tokenizer.decode(tokenizer.encode(notes))
    assert len(back) == len(notes)
    for kind in (False, True):
        a, b = notes.select(notes.is_drum == kind), back.select(back.is_drum == kind)
        for key in {(p, v, g) for p, v, g in zip(a.pitch, a.velocity, a.program, strict=True)}:
            near = [
                np.sort(n.start[(n.pitch == key[0]) & (n.velocity == key[1]) & (n.program == key[2])]) for n in (a, b)
            ]
            assert len(near[0]) == len(near[1])
            assert np.abs(near[0] - near[1]).max() <= 0.005 + 1e-9


@given(st.lists(st.lists(st.integers(-5, 2000) | st.integers(1000, 1400), min_size=9, max_size=9), max_size=3))
def test_random_tokens_decode_to_valid_notes(rows):
    notes = NoteTokenizer().decode(np.array(rows, np.int32).reshape(-1, 9))
    assert (notes.end > notes.start).all()
    assert ((notes.velocity >= 1) & (notes.velocity <= 127)).all()
    assert notes.total_time >= notes.end.max(initial=0.0)


def dense_notes(count, start=6.0):
    """`count` notes of velocities 1, 2, ... 100, 1, ..., one per step, that last into the next window."""
    return notes_of(*[(start + (i % 400) / 100, 11.0, 20 + i // 400, 1 + i % 100, 0) for i in range(count)])


def test_overfull_window_raises_input_error():
    notes = dense_notes(2000)
    with pytest.raises(InputError, match=r"window at 5\.12 s .*2048"):
        NoteTokenizer().encode(notes)
    with pytest.raises(InputError, match="thin"):
        NoteTokenizer().encode(notes)


def test_exactly_full_window_is_accepted():
    notes = dense_notes(300)
    needed = max(len(tokens) for tokens in windows(notes))
    assert windows(notes, max_tokens=needed) == windows(notes)
    with pytest.raises(InputError, match=rf"\b{needed} tokens"):
        windows(notes, max_tokens=needed - 1)


def test_thinning_drops_the_quietest_notes_and_counts_them():
    notes = dense_notes(2000)
    tokenizer = NoteTokenizer(on_overflow="thin")
    thinned, dropped = tokenizer.thin(notes)
    assert 0 < dropped == len(notes) - len(thinned)
    assert thinned.velocity.min() >= np.sort(notes.velocity)[dropped - 1]  # only quieter notes are dropped
    tokens = tokenizer.encode(notes)
    np.testing.assert_array_equal(tokens, NoteTokenizer().encode(thinned))
    assert ((tokens != 0).sum(1) > 2000).any()  # no more than necessary
    sparse = dense_notes(100)
    assert tokenizer.thin(sparse)[1] == 0
    np.testing.assert_array_equal(tokenizer.encode(sparse), NoteTokenizer().encode(sparse))


def test_single_window_of_a_timeline_is_thinned():
    tokenizer = NoteTokenizer(TokenizerConfig(max_tokens=12), on_overflow="thin")
    notes = notes_of((0.0, 9.0, 60, 100, 0), (1.0, 1.5, 62, 20, 0), (2.0, 2.5, 64, 10, 0), (3.0, 3.5, 66, 50, 0))
    assert tokenizer.window(tokenizer.timeline(notes), 0).tolist() == [
        *[TIE, program(0), ON, pitch(60), shift(300), pitch(66), shift(350), OFF, pitch(66), EOS]
    ]


def test_10000_notes_are_tokenized_in_under_a_second(tmp_path):
    """The limit applies to processor time and excludes parsing of the MIDI file."""
    rng = np.random.default_rng(0)
    file = mido.MidiFile(ticks_per_beat=480)
    for channel in range(4):
        track = file.add_track()
        for p in rng.integers(20, 100, 2500).tolist():
            track.append(mido.Message("note_on", channel=channel, note=p, velocity=80, time=10))
            track.append(mido.Message("note_off", channel=channel, note=p, time=200))
    file.save(tmp_path / "long.mid")
    tokenizer = NoteTokenizer()
    notes = read_midi(tmp_path / "long.mid")
    start = time.thread_time()
    tokens = tokenizer.encode(notes)
    assert time.thread_time() - start < 1.0
    assert len(tokenizer.decode(tokens)) == 10_000


def test_invalid_on_overflow_raises_input_error():
    """Settings of the config are checked by the config itself."""
    with pytest.raises(InputError, match=r"on_overflow is 'cut'.*error, thin"):
        NoteTokenizer(TokenizerConfig(), "cut")


def test_tokenizer_can_be_pickled_and_compared():
    tokenizer = NoteTokenizer(TokenizerConfig(velocity_bins=127))
    assert pickle.loads(pickle.dumps(tokenizer)) == tokenizer == dataclasses.replace(tokenizer)
