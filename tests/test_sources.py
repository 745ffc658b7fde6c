import collections
import re
import shutil
import struct

import numpy as np
import pytest

from spectrodiff.data.builders.rendered import sources
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import Notes, read_midi, write_midi

needs_mma = pytest.mark.skipif(not (shutil.which("mma") and sources.GROOVES.is_dir()), reason="MMA is optional")


def triad(seconds=16.0):
    """A C major chord on a guitar every second, with a bass note."""
    start = np.repeat(np.arange(seconds), 4)
    return Notes(
        start=start,
        end=start + 1.0,
        pitch=np.tile(np.array([36, 48, 52, 55], np.int32), int(seconds)),
        velocity=np.full(len(start), 80, np.int32),
        program=np.tile(np.array([33, 25, 25, 25], np.int32), int(seconds)),
        is_drum=np.zeros(len(start), bool),
        total_time=seconds,
    )


@pytest.fixture
def wads(tmp_path, monkeypatch):
    """Three WAD files of games with two different pieces in all, and with lumps that are not MIDI."""
    write_midi(triad(4.0), tmp_path / "a.mid")
    write_midi(triad(8.0), tmp_path / "b.mid")
    a, b = (tmp_path / "a.mid").read_bytes(), (tmp_path / "b.mid").read_bytes()
    lumps = {"freedoom1": [(b"D_E1M1", a), (b"MAP01", b"")], "freedoom2": [(b"D_RUNNIN", b), (b"D_OLD", b"MUS\x1a")]}
    for wad in ("freedoom1", "freedoom2", "freedm"):
        data, directory = b"", b""
        for name, lump in lumps.get(wad, [(b"D_COPY", a)]):
            directory += struct.pack("<ii8s", 12 + len(data), len(lump), name)
            data += lump
        header = struct.pack("<4sii", b"IWAD", len(directory) // 16, 12 + len(data))
        (tmp_path / f"{wad}.wad").write_bytes(header + data + directory)
    monkeypatch.setattr(sources, "WADS", tmp_path)
    sources._lumps.cache_clear()
    yield
    sources._lumps.cache_clear()


def test_split_is_a_hash_of_the_name_except_held_out_pieces():
    splits = collections.Counter(sources.split_by_hash(f"etude-{n:06d}") for n in range(4000))
    assert 0.88 < splits["train"] / 4000 < 0.92
    assert 0.04 < splits["validation"] / 4000 < 0.06
    assert 0.04 < splits["test"] / 4000 < 0.06
    assert {sources.split_by_hash(name) for name in sources.HELD_OUT} == {"test"}


def test_game_source_lists_each_piece_once(wads, tmp_path):
    game = sources.SOURCES["game"]
    assert list(game.names()) == ["game-freedoom1-e1m1", "game-freedoom2-runnin"]
    assert len(game.load("game-freedoom2-runnin", tmp_path / "cache")) == len(triad(8.0))


def test_missing_games_raise_input_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "WADS", tmp_path)
    sources._lumps.cache_clear()
    with pytest.raises(InputError, match="apt-get install freedoom"):
        sources.SOURCES["game"].names()


def test_cached_pieces_are_made_once_and_failures_leave_no_file(tmp_path):
    made = []

    @sources.cached
    def load(name, path):
        made.append(name)
        if name == "bad":
            raise InputError("cannot")
        write_midi(triad(), path)

    assert len(load("good", tmp_path / "cache")) == len(load("good", tmp_path / "cache")) == len(triad())
    with pytest.raises(InputError):
        load("bad", tmp_path / "cache")
    assert made == ["good", "bad"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["good.mid"]


@pytest.mark.parametrize("seed", range(5))
def test_chart_has_one_key_and_repeated_sections(seed):
    bars = sources.chart(np.random.default_rng(seed), 40)
    assert len(bars) == 40
    chords = [chord for bar in bars for chord in bar.split(" / ")]
    roots = {sources.KEYS.index(re.match(r"[A-G]b?", chord)[0]) for chord in chords}
    assert any(roots <= {(key + d) % 12 for d in mode} for key in range(12) for mode in (sources.MAJOR, sources.MINOR))
    sections = [tuple(bars[i : i + 8]) for i in range(0, 40, 8)]
    assert len(set(sections)) <= 3


def test_melody_follows_the_chord_and_is_added_to_the_band():
    band, melodies = triad(), 0
    for seed in range(20):
        both = sources.with_melody(band, np.random.default_rng(seed), 0.5)
        new = both.select(~np.isin(both.program, [25, 33]) | (both.pitch > 55))
        assert len(both) - len(new) == len(band)
        assert set((new.pitch % 12).tolist()) <= {0, 4, 7}
        assert np.all((new.pitch >= 52) & (new.pitch <= 88))
        assert np.all(np.diff(both.start) >= 0)
        assert both.end.max() <= both.total_time == band.total_time
        melodies += len(new) > 0
    assert 10 <= melodies < 20


@needs_mma
def test_band_piece_is_reproducible(tmp_path):
    load = sources.SOURCES["band"].load
    assert "band-000007" in sources.SOURCES["band"].names()
    notes = load("band-000007", tmp_path / "one")
    load("band-000007", tmp_path / "two")
    assert (tmp_path / "one/band-000007.mid").read_bytes() == (tmp_path / "two/band-000007.mid").read_bytes()
    assert notes.is_drum.any()
    assert len(np.unique(notes.program)) > 2
    assert notes.total_time > 16


@pytest.mark.slow
def test_score_source_reads_the_music21_corpus(tmp_path):
    pytest.importorskip("music21")
    score = sources.SOURCES["score"]
    assert {name for name in sources.HELD_OUT if name.startswith("score")} <= set(score.names())
    notes = score.load("score-corelli-opus3no1-1grave", tmp_path)
    assert len(notes) > 200
    np.testing.assert_array_equal(read_midi(tmp_path / "score-corelli-opus3no1-1grave.mid").pitch, notes.pitch)
