import dataclasses
import json
import re

import numpy as np
import pytest
from inputs import make_recording, random_notes, write_dataset
from matplotlib.image import imread
from toy_corpus import Toy, write_toys

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.config import TokenizerConfig
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.builders.summary import summarize, table
from spectrodiff.data.recordings import Recording
from spectrodiff.files import write_json
from spectrodiff.notes.tokenizer import NoteTokenizer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared dataset of seven toys, one of them bad."""
    folder = tmp_path_factory.mktemp("data")
    return prepare(Toy(), write_toys(folder / "toys", 7, bad=(3,)), folder, skip_bad=True)


@pytest.fixture(scope="module")
def summary(prepared):
    return summarize(prepared)


def recordings(prepared):
    toys = prepared.parent.parent / "toys"
    return [Toy().read(entry) for entry in Toy().entries(toys) if entry.source[1] != "bad"]


def test_summary_counts_pieces_stems_hours_and_instruments(prepared, summary):
    pieces = recordings(prepared)
    hours = sum(len(piece.audio) for piece in pieces) / SAMPLE_RATE / 3600
    assert summary["name"] == "toy"
    assert summary["hours"] == pytest.approx(hours)
    assert summary["pieces"] == 6
    assert summary["stems"] == sum(len(piece.stems) for piece in pieces) > 0
    assert {split: of["pieces"] for split, of in summary["splits"].items()} == {"train": 4, "validation": 2}
    assert sum(of["hours"] for of in summary["splits"].values()) == pytest.approx(hours)
    assert summary["skipped"].keys() == {"toy03"}

    instruments = {key.split(" ", 1)[0]: of for key, of in summary["instruments"].items()}
    for program in (0, 5, 40):
        played = [(~piece.notes.is_drum & (piece.notes.program == program)).sum() for piece in pieces]
        assert instruments.get(str(program), {"notes": 0, "pieces": 0}) == {
            "notes": sum(played),
            "pieces": np.count_nonzero(played),
        }
    assert instruments["drums"] == {"notes": sum(piece.notes.is_drum.sum() for piece in pieces), "pieces": 6}
    assert list(summary["instruments"].values()) == sorted(
        summary["instruments"].values(), key=lambda of: of["notes"], reverse=True
    )
    assert "0 Acoustic Grand Piano" in summary["instruments"]


def test_token_counts_match_the_default_tokenizer(prepared, summary):
    lengths = [(row > 0).sum() for piece in recordings(prepared) for row in NoteTokenizer().encode(piece.notes)]
    found = summary["tokens_per_window"]
    assert found["windows"] == len(lengths) == sum(of["windows"] for of in summary["splits"].values())
    for key, share in (("median", 50), ("p90", 90), ("p99", 99), ("max", 100)):
        assert found[key] == pytest.approx(np.percentile(lengths, share))
    assert found["over_limit"] == 0


def test_overfull_windows_are_counted_with_all_their_tokens(tmp_path, monkeypatch):
    limit = TokenizerConfig().max_tokens
    dense = random_notes(0, seconds=5.0, voices=60, drums=3000)
    monkeypatch.setattr(
        Toy, "read", lambda self, entry: Recording(entry.name, np.zeros(5 * SAMPLE_RATE, np.float32), dense)
    )
    found = summarize(prepare(Toy(), write_toys(tmp_path / "toys", 2), tmp_path))["tokens_per_window"]
    assert found["max"] > limit
    assert found["over_limit"] == 0.5  # the second windows hold only tied notes


def test_printed_table_matches_the_summary(summary):
    text = table(summary)
    tokens = summary["tokens_per_window"]
    assert "pieces: 6, with 6 stems" in text
    assert "splits: train 4 (0.00 h), validation 2 (0.00 h)" in text
    assert f"tokens: median {tokens['median']:.0f}, 90 % {tokens['p90']:.0f}" in text
    assert "skipped: 1; " in text
    assert "toy03: " in text.splitlines()[-1]
    assert all(len(line.split(": ", 1)) == 2 for line in text.splitlines())


def shifted(recording, seconds):
    notes = recording.notes
    later = {"start": notes.start + seconds, "end": notes.end + seconds, "total_time": notes.total_time + seconds}
    return dataclasses.replace(recording, notes=dataclasses.replace(notes, **later))


def test_misaligned_pieces_are_listed_as_suspicious(tmp_path):
    pieces = [make_recording(seed, seconds=20.0) for seed in range(14)]
    few_notes = dataclasses.replace(
        shifted(pieces[13], 0.3), notes=shifted(pieces[13], 0.3).notes.select(np.arange(5, dtype=np.int32))
    )
    pieces = [shifted(piece, 0.3) for piece in pieces[:12]] + [pieces[12], few_notes]
    folder = write_dataset(tmp_path, "late", {"train": pieces})
    write_json(folder / "metadata.json", {"skipped": {}})
    summary = summarize(folder)
    assert summary["suspicious"].keys() == {piece.name for piece in pieces[:12]}
    assert all(re.match(r".* 0\.(28|30|32) s before ", why) for why in summary["suspicious"].values())
    text = table(summary)
    assert re.search(r"suspicious: 12 of 14 .*\b10\b.*\bsummary\.json", text)
    assert len(re.findall(r" 0\.(?:28|30|32) s before ", text)) == 10


def test_summary_is_saved_beside_the_dataset(prepared, summary, monkeypatch):
    assert json.loads((prepared / "summary.json").read_text()) == summary
    picture = imread(prepared / "summary.png")
    assert picture.shape == (770, 1320, 4)
    assert picture[..., :3].std() > 0.1
    monkeypatch.setattr("spectrodiff.data.builders.summary.open_dataset", lambda *_: pytest.fail("looks again"))
    assert summarize(prepared) == summary
    (prepared / "summary.png").unlink()
    monkeypatch.undo()
    assert summarize(prepared) == summary
    assert (prepared / "summary.png").exists()


def test_replaced_dataset_is_summarised_again(tmp_path):
    toys = write_toys(tmp_path / "toys", 3)
    assert summarize(prepare(Toy(), toys, tmp_path))["pieces"] == 3
    (toys / "toy09.toy").write_text("test 9")
    assert summarize(prepare(Toy(), toys, tmp_path))["pieces"] == 4
