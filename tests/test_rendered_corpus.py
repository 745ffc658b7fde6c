import csv
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import soundfile
from optional import needs_synth

from spectrodiff.data.builders.folder import Folder
from spectrodiff.data.builders.rendered import corpus, sources
from spectrodiff.data.builders.rendered.sources import split_by_hash
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import decode
from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi

# Etudes need no program but FluidSynth; of six seconds each, they render quickly.
RECIPE = corpus.Recipe(weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0, tail=0.5)
HOURS = 30 / 3600


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    out = tmp_path_factory.mktemp("pieces")
    corpus.render_pieces(out, HOURS, RECIPE, workers=1)
    return out


def file_hashes(out):
    """Hashes of all files except audio."""
    files = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".flac"]
    return {path.relative_to(out): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_same(one, other):
    assert file_hashes(one) == file_hashes(other)
    assert sorted(p.name for p in (one / "audio").iterdir()) == sorted(p.name for p in (other / "audio").iterdir())
    for path in (one / "audio").iterdir():
        ours, theirs = soundfile.read(path)[0], soundfile.read(other / "audio" / path.name)[0]
        assert np.std(ours - theirs) < 0.01 * np.std(ours)


def rows(out):
    with (out / "splits.csv").open() as file:
        return list(csv.DictReader(file))


@needs_synth
def test_rendered_pieces_are_a_folder_of_audio_and_midi(pieces):
    lengths = [float(row["seconds"]) for row in rows(pieces)]
    assert sum(lengths) >= 30 > sum(lengths[:-1])
    for row in rows(pieces):
        info = soundfile.info(pieces / "audio" / f"{row['name']}.flac")
        notes = read_midi(pieces / "midi" / f"{row['name']}.mid")
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.duration == pytest.approx(float(row["seconds"]), abs=1e-3)
        assert info.duration == pytest.approx(notes.total_time + 0.5, abs=1e-3)
        assert len(notes) == int(row["notes"])
        assert row["split"] == split_by_hash(row["source"])
    assert len(list((pieces / "audio").iterdir())) == len(list((pieces / "midi").iterdir())) == len(rows(pieces))
    record = json.loads((pieces / "recipe.json").read_text())
    assert record["recipe"]["seed"] == 0
    assert len(record["soundfont_sha256"]) == 64
    assert "etude" in record["licences"]
    by_folder = {entry.name: entry.split for entry in Folder().entries(pieces)}
    assert by_folder == {row["name"]: row["split"] for row in rows(pieces)}


@needs_synth
def test_audio_starts_at_the_first_note(pieces):
    for row in rows(pieces):
        audio, rate = soundfile.read(pieces / "audio" / f"{row['name']}.flac")
        first = read_midi(pieces / "midi" / f"{row['name']}.mid").start.min()
        onset = np.argmax(np.abs(audio) > 1e-4) / rate
        assert first - 0.001 < onset < first + 0.08  # soft attacks are slow


@needs_synth
def test_dataset_holds_the_pieces_and_can_be_extended(pieces, tmp_path, monkeypatch):
    options = {f.name: getattr(RECIPE, f.name) for f in dataclasses.fields(RECIPE)}
    folder = corpus.prepare_rendered(tmp_path, hours=HOURS, workers=1, **options)
    assert rows(tmp_path / "rendered") == rows(pieces)
    dataset = open_dataset(tmp_path, "rendered")
    found = {decode(record).name: (split, decode(record)) for split in dataset.splits for record in dataset[split]}
    assert found.keys() == {row["name"] for row in rows(pieces)}
    for row in rows(tmp_path / "rendered"):
        split, recording = found[row["name"]]
        assert split == row["split"]
        audio, _ = soundfile.read(tmp_path / "rendered" / "audio" / f"{row['name']}.flac", dtype="float32")
        np.testing.assert_array_equal(recording.audio, audio)
        notes = read_midi(tmp_path / "rendered" / "midi" / f"{row['name']}.mid")
        np.testing.assert_array_equal(recording.notes.start, notes.start)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["options"]["recipe"] == dataclasses.asdict(RECIPE)

    made = corpus._PieceMaker.__call__
    new = []
    monkeypatch.setattr(corpus._PieceMaker, "__call__", lambda self, index: new.append(index) or made(self, index))
    before = rows(pieces)
    more = sum(float(row["seconds"]) for row in before) / 3600 + 1e-4
    assert corpus.prepare_rendered(tmp_path, hours=more, workers=1, **options) == folder
    assert new == [len(before)]
    dataset = open_dataset(tmp_path, "rendered")
    assert sum(len(dataset[split]) for split in dataset.splits) == len(before) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rendered"]


@needs_synth
def test_interrupted_run_is_resumed_with_the_same_result(pieces, tmp_path, monkeypatch):
    make = corpus._PieceMaker.__call__

    def killed(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return make(self, index)

    monkeypatch.setattr(corpus._PieceMaker, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        corpus.render_pieces(tmp_path, HOURS, RECIPE, workers=1)
    monkeypatch.undo()
    assert len(rows(tmp_path)) == len(list((tmp_path / "audio").iterdir())) == 2
    (tmp_path / "midi" / f"{rows(tmp_path)[1]['name']}.mid").unlink()  # a lost file is rendered again
    corpus.render_pieces(tmp_path, HOURS, RECIPE, workers=1)
    assert_same(tmp_path, pieces)


@needs_synth
@pytest.mark.trial
def test_worker_count_does_not_change_the_pieces(pieces, tmp_path):
    corpus.render_pieces(tmp_path, HOURS, RECIPE, workers=2)
    assert_same(tmp_path, pieces)


@needs_synth
def test_other_recipe_in_the_same_folder_raises_input_error(pieces):
    before = file_hashes(pieces)
    with pytest.raises(InputError, match=r"tail 0\.5.* 1\.5.*--data_dir"):
        corpus.render_pieces(pieces, 1.0, dataclasses.replace(RECIPE, tail=1.5))
    assert file_hashes(pieces) == before


@needs_synth
@pytest.mark.parametrize(
    ("recorded", "why"),
    [
        ({"soundfont_sha256": "0" * 64}, "soundfont_sha256 0000"),
        (
            {"pieces_to_draw_from": {"etude": 99}},
            r"pieces_to_draw_from {'etude': 99}.*{'etude': 100000}",
        ),
    ],
)
def test_extending_with_other_sources_raises_input_error(pieces, tmp_path, recorded, why):
    shutil.copytree(pieces, tmp_path / "copy")
    path = tmp_path / "copy" / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | recorded))
    before = file_hashes(tmp_path)
    with pytest.raises(InputError, match=why):
        corpus.render_pieces(tmp_path / "copy", 1.0, RECIPE)
    assert file_hashes(tmp_path) == before
    corpus.render_pieces(tmp_path / "copy", HOURS, RECIPE)  # nothing more to render: no sources needed


@needs_synth
def test_missing_program_raises_input_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    sources._grooves.cache_clear()
    with pytest.raises(InputError, match=r"\bmma\b.*bands"):
        corpus.render_pieces(tmp_path / "out", HOURS, dataclasses.replace(RECIPE, weights={"etude": 0.9, "band": 0.1}))
    assert not (tmp_path / "out" / "recipe.json").exists()


def test_folder_of_pieces_as_data_dir_raises_input_error(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(InputError, match=f"^{tmp_path} "):
        corpus.prepare_rendered(tmp_path, hours=1.0)


def test_unwritable_data_dir_raises_input_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/rendered .*--data_dir"):
        corpus.prepare_rendered(tmp_path / "file", hours=1.0)


@needs_synth
def test_clipping_mix_raises_input_error(tmp_path):
    loud = corpus.Recipe(weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0, gain=10.0)
    with pytest.raises(InputError, match=r"\bgain 10\.0"):
        corpus.render_pieces(tmp_path, HOURS, loud, workers=1)
    assert not list((tmp_path / "audio").iterdir())


@pytest.mark.parametrize(
    ("hours", "programs"), [(0.0, "family"), (-1.0, "family"), (float("nan"), "family"), (1.0, "all")]
)
def test_invalid_settings_raise_input_error(tmp_path, hours, programs):
    with pytest.raises(InputError, match=rf"^hours .* {hours}$|^programs .* '{programs}'$"):
        corpus.render_pieces(tmp_path, hours, corpus.Recipe(programs=programs))
    assert not list(tmp_path.iterdir())
