"""README and the pages of docs/: Python blocks and commands run, and flags, files, names and links exist."""

import io
import pathlib
import pkgutil
import re
import shlex

import gin
import mido
import pytest
from inputs import make_recording, write_dataset
from parsers import parsers
from weights import random_arrays, write_weights

import spectrodiff
from spectrodiff.audio.files import write_audio
from spectrodiff.cli import main, make_parser
from spectrodiff.notes.midi import write_midi
from spectrodiff.pretrained import hub
from spectrodiff.training.gin_config import read_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RUN_ELSEWHERE = {"extending.md"}  # tested by test_extending
COMMANDS = {"spectrodiff": [], "train.py": ["train"], "infer.py": ["synthesize"]}


def blocks(page, language, run=False):
    """The code blocks of a language; with `run`, not those after a comment `<!-- not run: why -->`."""
    found, block, before = [], None, ""
    for line in page.read_text().splitlines():
        if block is not None and line.startswith("```"):
            if block[0] == language and not (run and block[1].startswith("<!-- not run: ")):
                found.append("\n".join(block[2:]) + "\n")
            block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("```"):
            block = [line[3:], before]
        before = line
    return found


def commands(page, run=False):
    """The arguments of each spectrodiff, train.py and infer.py command in the shell blocks of a page; see `blocks`."""
    for block in blocks(page, "", run):
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
    [page for page in PAGES if page.name not in RUN_ELSEWHERE and blocks(page, "python", run=True)],
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
    for code in blocks(page, "python", run=True):
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


SMALL_MODEL = [
    *("ModelConfig.width = 32", "ModelConfig.heads = 2", "ModelConfig.head_dim = 16", "ModelConfig.mlp_width = 64"),
    *("ModelConfig.note_layers = 1", "ModelConfig.decoder_layers = 1"),
]
SMALL_TEXTURE = [*SMALL_MODEL, "TextureConfig.channels = (4, 8)"]
SMALL = {
    **dict.fromkeys(("demo.gin", "demo_student.gin", "finetune.gin"), SMALL_TEXTURE),
    "demo_diffusion.gin": SMALL_MODEL,
    "refiner.gin": ["RefinerConfig.width = 16", "RefinerConfig.layers = 1"],
    "melgan.gin": ["GeneratorConfig.channels = 16"],
}
# The page of `app` is tested by test_app, and `prepare rendered` by test_rendered_corpus.
TESTED_ELSEWHERE = (["app"], ["prepare", "rendered"])


@pytest.fixture
def reader(tmp_path, monkeypatch, short_song):
    """A folder with what a reader has before a page's commands: songs, recordings, a corpus, and small weights."""
    monkeypatch.chdir(tmp_path)
    for song in ("song.mid", "songs/a.mid", "songs/b.mid"):
        pathlib.Path(song).parent.mkdir(exist_ok=True)
        pathlib.Path(song).write_bytes(short_song)
    for folder in ("recordings", "my/recordings", "glass"):
        pathlib.Path(folder).mkdir(parents=True)
        for seed in range(8):
            piece = make_recording(seed, seconds=3.0)
            write_audio(f"{folder}/piece_{seed:02}.wav", piece.audio)
            write_midi(piece.notes, f"{folder}/piece_{seed:02}.mid")
    pieces = [make_recording(seed) for seed in range(5)]
    write_dataset(
        pathlib.Path("data"), "rendered", {"train": pieces[:2], "validation": pieces[2:3], "test": pieces[3:]}
    )
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("demo", "demo_student", "demo_diffusion"):
        read_config([f"{name}.gin"], SMALL[f"{name}.gin"])
        config = gin.get_bindings("train")["task"].config
        gin.clear_config()
        write_weights(weights / name, "spectrodiff", config, random_arrays(config))
    packaged = hub.packaged_weights()["demo"]
    for path in [*packaged.glob("refiner.*"), *packaged.glob("vocoder.*")]:
        (weights / "demo" / path.name).symlink_to(path)
    monkeypatch.setattr(hub, "_WEIGHTS", weights)


@pytest.mark.trial
@pytest.mark.parametrize("page", [page for page in PAGES if any(commands(page, run=True))], ids=lambda page: page.name)
def test_commands_run(page, reader):
    """In the order of the page, with small networks that are trained for two steps; they write what they are to."""
    ran = 0
    for arguments in commands(page, run=True):
        if any(arguments[: len(words)] == words for words in TESTED_ELSEWHERE):
            continue
        if arguments[0] == "train":
            config = arguments[arguments.index("--gin_file") + 1]
            bindings = [*SMALL[config], "train.steps = 2", "train.evaluators = ()"]
            optimizer = "adamw" if config == "melgan.gin" else "muon"
            bindings += [f"{optimizer}.warmup = 0", f"{optimizer}.steps = 2"]
            arguments = [*arguments, *(f"--gin_param={binding}" for binding in bindings)]
        if arguments[0] == "evaluate":
            arguments = [*arguments, "--no_transcription"]  # which is slow
        main(arguments)
        gin.clear_config()
        for option in ("--out", "--plot", "--workdir"):
            assert option not in arguments or pathlib.Path(arguments[arguments.index(option) + 1]).exists()
        ran += 1
    assert ran
