"""README and the pages of docs/: Python blocks run, commands parse, and flags, files, names and links exist."""

import io
import pathlib
import pkgutil
import re
import shlex

import gin
import mido
import pytest
from parsers import parsers

import spectrodiff
from spectrodiff.cli import make_parser
from spectrodiff.pretrained import hub
from spectrodiff.training.gin_config import read_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_ELSEWHERE = {"extending.md"}  # tested by test_extending
COMMANDS = {"spectrodiff": [], "train.py": ["train"], "infer.py": ["synthesize"]}


def blocks(page, language):
    """The code blocks of a language, except those after a comment `<!-- not run ... -->`."""
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
    """The arguments of each spectrodiff, train.py and infer.py command in the shell blocks of a page."""
    for block in blocks(page, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words[:3]):
                if word in COMMANDS and (word == "spectrodiff" or words[place - 1] == "python"):
                    yield [*COMMANDS[word], *words[place + 1 :]]
                    break


def inline_code(page):
    """The inline code of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def exact_parser():
    """Our parser without abbreviations, by which a renamed flag could still match."""
    parser = make_parser()
    for each in parsers(parser):
        each.allow_abbrev = False
    return parser


def test_pages_have_commands_code_and_flags_to_check():
    assert sum(len(list(commands(page))) for page in PAGES) > 20
    assert sum(len(blocks(page, "python")) for page in PAGES) > 5
    assert sum(code.startswith("--") for page in PAGES for code in inline_code(page)) > 20


def test_readme_has_at_most_1000_words():
    assert len((ROOT / "README.md").read_text().split()) <= 1000


def test_reference_has_all_public_names():
    lines = (ROOT / "docs" / "reference.md").read_text().splitlines()
    assert {f"::: spectrodiff.{name}" for name in spectrodiff.__all__} <= set(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_their_configs_exist(page):
    for arguments in commands(page):
        options = exact_parser().parse_args(arguments)
        assert options.command == arguments[0]
        if options.command == "train":
            read_config(options.gin_file, options.gin_param)
            assert gin.query_parameter("train.steps") > 0


@pytest.mark.parametrize("renamed", ["--midi", "--batch", "--gin_param", "--manual_dir"])
def test_commands_with_a_renamed_flag_do_not_parse(renamed):
    parser = exact_parser()
    for each in parsers(parser):
        if action := each._option_string_actions.pop(renamed, None):
            each._option_string_actions[f"{renamed}_new"] = action
    using = [arguments for page in PAGES for arguments in commands(page) if renamed in arguments]
    assert using
    for arguments in using:
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)


def flags(scripts):
    """The flags in the sources of scripts outside the package."""
    return {flag for script in scripts for flag in re.findall(r'"(--\w+)"', (ROOT / script).read_text())}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_inline_code_exist(page):
    """After a script's name, its own flags; elsewhere those of our commands or of any script on the page."""
    scripts = set(re.findall(r"python ((?:benchmarks|recipes|examples)/\w+\.py)", page.read_text()))
    ours = {flag for parser in parsers(make_parser()) for flag in parser._option_string_actions}
    for code in inline_code(page):
        if not code.startswith(("pip ", "tensorboard ")):
            named = scripts & set(code.split()[1:2])
            known = flags(named) if named else ours | flags(scripts)
            assert set(re.findall(r"(?<!\S)--[a-z]\w*(?:-\w+)*", code)) <= known, code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_gin_bindings_exist(page):
    """`= n` on a page stands for any number, and is tested with 2."""
    lines = [] if page.name in RUN_ELSEWHERE else "".join(blocks(page, "")).splitlines()
    bindings = [
        re.sub(" = n$", " = 2", line) for line in [*lines, *inline_code(page)] if re.match(r"[\w/]+\.\w+ = ", line)
    ]
    if bindings:
        read_config(["demo.gin"], bindings)
    for name in (binding.split(" = ")[0] for binding in bindings):
        assert gin.query_parameter(name) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_inline_code_exist(page):
    """Python and gin files are in the checkout, the package or configs/, unless the reader or a run writes them."""
    for code in inline_code(page):
        for name in set(re.findall(r"(?<!\S)[\w/]+\.(?:py|gin)\b", code)) - {"app.py", "config.gin"}:
            assert any((ROOT / folder / name).exists() for folder in ("", "spectrodiff", "configs")), name


def test_names_in_the_glossary_exist():
    """A dotted name begins with a module; a name without dots belongs to the module before it in the cell, if any."""
    names = 0
    for cell in re.findall(r"^\|[^|]*\|([^|]*)\|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE):
        module = None
        for code in re.findall(r"`(?:spectrodiff\.)?([A-Za-z_.]+)`", cell):
            if "." in code:
                module = pkgutil.resolve_name(f"spectrodiff.{code}")
            elif module is not None:
                assert hasattr(module, code), code
            names += 1
    assert names > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.name not in RUN_ELSEWHERE and blocks(page, "python")],
    ids=lambda page: page.name,
)
def test_python_blocks_run(page, short_song, checkpoint, tmp_path, monkeypatch):
    """A very small model replaces the demo weights, as it compiles faster."""
    (tmp_path / "weights").mkdir()
    for name in ("demo", "demo_diffusion"):
        (tmp_path / "weights" / name).symlink_to(checkpoint)
    monkeypatch.setattr(hub, "_WEIGHTS", tmp_path / "weights")
    (tmp_path / "song.mid").write_bytes(short_song)
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    assert names.keys() - {"__builtins__"}


@pytest.fixture(scope="module")
def short_song():
    """The bytes of a MIDI file with one note of one second."""
    track = mido.MidiTrack([
        mido.Message("note_on", note=60, velocity=80),
        mido.Message("note_off", note=60, velocity=0, time=960),
    ])  # fmt: skip
    file = io.BytesIO()
    mido.MidiFile(tracks=[track]).save(file=file)
    return file.getvalue()
