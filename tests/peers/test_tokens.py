"""Our tokens of MIDI files, compared with those of diffusers."""

import itertools
import pathlib

import mido
import numpy as np
import pytest

from spectrodiff.config import TokenizerConfig
from spectrodiff.notes.midi import read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer

pytestmark = pytest.mark.slow  # PyTorch and its libraries take seconds to import

EXAMPLES = sorted((pathlib.Path(__file__).parents[2] / "examples").glob("*.mid"))
TOKENIZER = NoteTokenizer(TokenizerConfig(program_map="slakh"))
DRUMS = 9
BAR = 960  # ticks in a second, at 480 ticks per beat and the default tempo of 120 beats per minute


def note(tick, length, pitch, velocity=80):
    return [
        (tick, mido.Message("note_on", note=pitch, velocity=velocity)),
        (tick + length, mido.Message("note_on", note=pitch, velocity=0)),
    ]


def program(tick, number):
    return [(tick, mido.Message("program_change", program=number))]


def pedal(tick, value):
    return [(tick, mido.Message("control_change", control=64, value=value))]


def save(path, *tracks, tempos=()):
    """Writes a file of tracks, each given as a channel and lists of (tick, message)."""
    file = mido.MidiFile(ticks_per_beat=480)
    tempos = [(tick, mido.MetaMessage("set_tempo", tempo=tempo)) for tick, tempo in tempos]
    for channel, *parts in [(0, tempos), *tracks]:
        track, now = file.add_track(), 0
        for tick, message in sorted(itertools.chain(*parts), key=lambda event: event[0]):
            track.append(message.copy(time=tick - now, **({} if message.is_meta else {"channel": channel})))
            now = tick
    file.save(path)


def random_notes(seed, notes=60, last=12 * BAR):
    """Adjacent, overlapping and repeated notes of few pitches, on and off the 10 ms grid, some shorter than 10 ms."""
    rng = np.random.default_rng(seed)
    ticks, lengths = rng.integers(0, last, notes) // 7 * 7, rng.choice([1, 5, 240, 600, 3000], notes)
    pitches, velocities = rng.integers(58, 66, notes), rng.integers(1, 128, notes)
    columns = zip(*(column.tolist() for column in (ticks, lengths, pitches, velocities)), strict=True)
    return [event for row in columns for event in note(*row)]


def pedals(seed, last=12 * BAR):
    """Sustain pedal values at and around the threshold, with a release at the end."""
    rng = np.random.default_rng(seed)
    rows = zip(rng.integers(0, last, 12).tolist(), rng.choice([0, 63, 64, 127], 12).tolist(), strict=True)
    return [event for row in [*rows, (2 * last, 0)] for event in pedal(*row)]


FILES = {
    "tempo": lambda path: save(
        path, (0, random_notes(1)), tempos=[(0, 400_000), (1001, 731_337), (5000, 250_001), (9000, 1_000_000)]
    ),
    "pedal": lambda path: save(
        path, (0, random_notes(2), pedals(3)), (1, program(0, 48), random_notes(4)), (2, random_notes(5), pedals(6))
    ),
    "tracks": lambda path: save(path, *[(i % 9, program(0, 11 * i), random_notes(i, notes=20)) for i in range(12)]),
    # Programs change between notes only, since the peer gives a note the program at its end.
    "programs": lambda path: save(
        path,
        (0, *[program(700 * i, 37 * i % 128) + note(700 * i, 240 + 20 * i, 60 + i % 3, 40 + i) for i in range(17)]),
    ),
    "kits": lambda path: save(
        path, *[(DRUMS, program(0, kit), random_notes(8)) for kit in (25, 0)], (0, program(0, 33), random_notes(9))
    ),
    # The chord ends at the step of the last event, a drum hit that lasts two more windows, which list it as tied.
    "ghosts": lambda path: save(
        path, (0, note(0, BAR, 60), note(0, BAR, 64)), (DRUMS, note(500, 100, 38), note(BAR, 12 * BAR, 49))
    ),
    "one window": lambda path: save(path, (0, note(0, 5 * BAR, 60))),
    # Exactly 5.12 s, which gives two windows, as a piece that ends with a window gets one more.
    "on the frame": lambda path: save(path, (0, note(0, 6144, 60)), tempos=[(0, 400_000)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("midi")


@pytest.fixture(scope="module")
def unreleased_pedal(folder):
    """A file with a pedal that is never released, after whose notes the peer ends the piece."""
    path = folder / "held.mid"
    save(path, (0, pedal(0, 127), note(0, BAR, 60)), (DRUMS, note(500, 100, 38), note(11 * BAR, 100, 49)))
    return path


@pytest.fixture(scope="module")
def paths(folder):
    for name, write in FILES.items():
        write(folder / f"{name}.mid")
    return {path.stem: path for path in [*EXAMPLES, *(folder / f"{name}.mid" for name in FILES)]}


@pytest.fixture(scope="module")
def theirs(peer, paths, unreleased_pedal, folder):
    peer("tokens", folder / "tokens.npz", *paths.values(), unreleased_pedal)
    return np.load(folder / "tokens.npz")


@pytest.mark.parametrize("name", [*(path.stem for path in EXAMPLES), *FILES])
def test_tokens_match_the_peer(name, paths, theirs):
    np.testing.assert_array_equal(TOKENIZER.encode_file(paths[name]), theirs[paths[name].name])


def test_files_contain_the_intended_cases(paths):
    plain = NoteTokenizer(TokenizerConfig(program_map="slakh", ghost_ties=False))
    assert (TOKENIZER.encode_file(paths["ghosts"]) != plain.encode_file(paths["ghosts"])).any(1).tolist() == [0, 1, 1]
    lengths = [len(TOKENIZER.encode_file(paths[name])) for name in ("one window", "on the frame")]
    assert lengths == [1, 2]
    notes = read_midi(paths["kits"])
    hits = list(zip(notes.start[notes.is_drum], notes.pitch[notes.is_drum], strict=True))
    assert len(hits) > len(set(hits))
    assert len(np.unique(read_midi(paths["tracks"]).program)) == 12


def test_drums_after_an_unreleased_pedal_are_in_their_windows(unreleased_pedal, theirs):
    """The peer ends the piece with the pedal's notes, and puts later drum hits into its last window."""
    ours, theirs = TOKENIZER.encode_file(unreleased_pedal), theirs[unreleased_pedal.name]
    assert (len(ours), len(theirs)) == (3, 1)
    crash = TOKENIZER.vocabulary.drum(49)
    assert crash in theirs[-1]
    assert (ours == crash).any(1).tolist() == [False, False, True]
