"""README and the pages of docs/: their Python runs, their commands parse, and their links lead somewhere."""

import io
import pathlib
import re
import shlex

import mido
import pytest

from spectrodiff.cli import make_parser
from spectrodiff.commands.train import read_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_ELSEWHERE = {"extending.md"}  # by test_extending
COMMANDS = {"spectrodiff": [], "train.py": ["train"], "infer.py": ["synthesize"]}


def blocks(page, language):
    """The code blocks of a language, without those that a comment before them exempts."""
    found, block, before = [], None, ""
    for line in page.read_text().splitlines():
        if block is not None and line.startswith("```"):
            if block[0] == language and not block[1].startswith("<!-- not run"):
                found.append("\n".join(block[2:]) + "\n")
            block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("```"):
            block = [line[3:], before]
        before = line
    return found


def commands(page):
    """The arguments of every command of ours in the shell blocks of a page."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words[:3]):
                if word in COMMANDS and (word == "spectrodiff" or words[place - 1] == "python"):
                    yield [*COMMANDS[word], *words[place + 1 :]]
                    break


def test_there_are_commands_and_blocks_to_check():
    assert sum(len(list(commands(page))) for page in PAGES) > 20
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_their_configs_are_there(page):
    for arguments in commands(page):
        options = make_parser().parse_args(arguments)
        if options.command == "train":
            read_config(options.gin_file, options.gin_param)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in RUN_ELSEWHERE and blocks(page, "python")],
    ids=lambda page: page.name,
)
def test_python_runs(page, short_song, tmp_path, monkeypatch):
    (tmp_path / "song.mid").write_bytes(short_song)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)


@pytest.fixture(scope="module")
def short_song():
    """A MIDI file of one note of a second."""
    track = mido.MidiTrack([
        mido.Message("note_on", note=60, velocity=80),
        mido.Message("note_off", note=60, velocity=0, time=960),
    ])  # fmt: skip
    file = io.BytesIO()
    mido.MidiFile(tracks=[track]).save(file=file)
    return file.getvalue()
