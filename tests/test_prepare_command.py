import dataclasses
import functools
import json
import re
import shutil
import subprocess
import sys

import corpora_writer as writer
import pytest
from inputs import make_recording
from optional import needs_synth
from test_folder import write_pair

from spectrodiff.cli import main, make_parser
from spectrodiff.data.builders import CORPORA, corpus
from spectrodiff.data.builders.rendered import corpus as rendered_corpus
from spectrodiff.data.dataset import open_dataset

WRITERS = {
    "maestro": writer.write_maestro,
    "slakh": writer.write_slakh,
    "cerberus4": writer.write_slakh,
    "guitarset": writer.write_guitarset,
    "musicnet": writer.write_musicnet,
    "urmp": writer.write_urmp,
    "groove": writer.write_groove,
}


@pytest.fixture
def own_pairs(tmp_path):
    """A folder of two pairs of audio and MIDI."""
    for number in range(2):
        folder = tmp_path / "own_pairs"
        write_pair(folder / f"song{number}.wav", folder / f"song{number}.mid", make_recording(number, seconds=3.0))
    return tmp_path / "own_pairs"


@pytest.fixture
def error_line(capsys):
    """A function that runs `prepare` and returns its one-line error message."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            main(["prepare", *map(str, arguments)])
        assert exit.value.code == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("spectrodiff")
        return message

    return run


def run(*arguments):
    main(["prepare", *map(str, arguments)])


def test_each_corpus_has_a_command_with_its_options():
    parser = make_parser()
    for name in CORPORA:
        options = vars(parser.parse_args(["prepare", name, "--data_dir", "data"]))
        assert options["data_dir"] == "data"
        if name != "rendered":
            defaults = {field.name: options[field.name] for field in dataclasses.fields(corpus(name))}
            assert corpus(name, **defaults) == corpus(name)


@pytest.mark.parametrize("name", WRITERS)
def test_corpus_is_prepared_and_summarised(tmp_path, name, capsys):
    root = WRITERS[name](tmp_path / "unpacked")
    run(name, "--manual_dir", root, "--data_dir", tmp_path / "data")
    entries = corpus(name).entries(root)
    dataset = open_dataset(tmp_path / "data", name)
    assert sum(len(dataset[split]) for split in dataset.splits) == len(entries)
    printed = capsys.readouterr().out
    assert printed.startswith(f"{tmp_path}/data/{name}/1.0.0 is prepared:\n")
    assert f"pieces: {len(entries)}" in printed
    assert json.loads((dataset.folder / "summary.json").read_text())["pieces"] == len(entries)
    assert (dataset.folder / "summary.png").exists()


def test_command_options_are_passed_to_the_corpus(tmp_path, own_pairs, error_line):
    root = writer.write_slakh(tmp_path / "unpacked")
    run("slakh", "--manual_dir", root, "--data_dir", tmp_path, "--submixes", 2, "--seed", 3)
    metadata = json.loads((tmp_path / "slakh/1.0.0/metadata.json").read_text())
    assert metadata["options"] == {"submixes": 2, "seed": 3, "skip_known_bad": True}
    message = error_line("slakh", "--manual_dir", root, "--data_dir", tmp_path)
    assert re.search(r"slakh/1\.0\.0 .*\bsubmixes 2\b.* 0\b.*--data_dir", message)
    table = tmp_path / "table.csv"
    table.write_text("name,split\nsong0,test\nsong1,train\n")
    run("folder", "--manual_dir", own_pairs, "--data_dir", tmp_path, "--csv", table, "--name", "mine")
    assert open_dataset(tmp_path, "mine").splits == ["train", "test"]


def test_known_bad_recordings_are_skipped_and_listed(tmp_path, capsys):
    root = writer.write_slakh(tmp_path / "unpacked")
    (root / "train" / "Track00001").rename(root / "train" / "Track00385")
    run("slakh", "--manual_dir", root, "--data_dir", tmp_path / "data")
    printed = capsys.readouterr().out
    assert re.search(r": 1\b.*--no-skip_known_bad", printed)
    assert "Track00385 S00: " in printed
    assert json.loads((tmp_path / "data/slakh/1.0.0/metadata.json").read_text())["known_bad"].keys() == {
        "Track00385 S00"
    }
    run("slakh", "--manual_dir", root, "--data_dir", tmp_path / "all", "--no-skip_known_bad")
    assert "--no-skip_known_bad" not in capsys.readouterr().out


@needs_synth
def test_rendered_corpus_is_prepared(tmp_path, capsys, monkeypatch):
    tiny = functools.partial(rendered_corpus.Recipe, weights={"etude": 1.0}, min_seconds=6.0, max_seconds=6.0)
    monkeypatch.setattr(rendered_corpus, "Recipe", tiny)
    run("rendered", "--data_dir", tmp_path, "--hours", 12 / 3600, "--workers", 1, "--seed", 1, "--programs", "family")
    assert (tmp_path / "rendered/splits.csv").exists()
    assert "pieces: 2" in capsys.readouterr().out
    recipe = json.loads((tmp_path / "rendered/1.0.0/metadata.json").read_text())["options"]["recipe"]
    assert (recipe["seed"], recipe["programs"]) == (1, "family")


def test_missing_or_wrong_manual_dir_raises_input_error(tmp_path, error_line):
    assert re.search("maestro .*--manual_dir.* https://magenta", error_line("maestro", "--data_dir", tmp_path))
    assert re.search("folder .*--manual_dir", error_line("folder", "--data_dir", tmp_path))
    wrong = error_line("maestro", "--data_dir", tmp_path, "--manual_dir", tmp_path)
    assert re.search(rf"{tmp_path} .*\bmaestro\b", wrong)
    assert f"{tmp_path}/nope" in error_line("maestro", "--data_dir", tmp_path, "--manual_dir", tmp_path / "nope")
    assert not list(tmp_path.iterdir())


def test_subfolder_of_a_corpus_raises_input_error(tmp_path, error_line):
    root = writer.write_groove(tmp_path / "unpacked")
    message = error_line("groove", "--data_dir", tmp_path / "data", "--manual_dir", root / "drummer1")
    assert re.search(rf"drummer1 .*\bgroove\b.*{root}", message)


def test_bad_recording_raises_input_error_unless_skip_bad(tmp_path, own_pairs, error_line, capsys):
    (own_pairs / "song0.wav").write_bytes(b"noise")
    message = error_line("folder", "--manual_dir", own_pairs, "--data_dir", tmp_path)
    assert "song0.wav " in message
    assert "(--skip_bad " in message
    run("folder", "--manual_dir", own_pairs, "--data_dir", tmp_path, "--skip_bad")
    printed = capsys.readouterr().out
    assert "skipped: 1;" in printed
    assert "song0: " in printed.splitlines()[-1]


def test_invalid_options_print_one_error_line(tmp_path, own_pairs, error_line):
    common = ("--manual_dir", own_pairs, "--data_dir", tmp_path)
    assert "workers is 0" in error_line("folder", *common, "--workers", 0)
    assert "workers is -1" in error_line("rendered", "--data_dir", tmp_path, "--workers", -1)
    assert "slakh's submixes is -1" in error_line("slakh", *common, "--submixes", -1)
    assert "'My Songs'" in error_line("folder", *common, "--name", "My Songs")
    assert "'nope'" in error_line("nope", *common)
    assert "song0.wav" in error_line("folder", "--manual_dir", own_pairs, "--data_dir", own_pairs / "song0.wav")
    shutil.rmtree(own_pairs)
    assert "own_pairs " in error_line("folder", *common)


def test_help_does_not_import_heavy_packages():
    program = (
        "import sys; from spectrodiff.cli import main\n"
        "try: main(['prepare', 'slakh', '--help'])\n"
        "except SystemExit: print({'tensorflow_datasets', 'note_seq', 'soundfile'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--submixes" in done.stdout
    assert done.stdout.endswith("set()\n")
