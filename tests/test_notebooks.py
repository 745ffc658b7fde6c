"""The notebooks run, their stored outputs have no errors or local paths, and they use only documented names."""

import ast
import pathlib
import re
import runpy

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
REFERENCE = FOLDER.parent / "docs" / "reference.md"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# An absolute path of at least two parts that is not part of a URL and not under Debian's /usr/share.
PATH = re.compile(r"(?<![\w.:/<>*-])/(?!usr/share/)[\w.-]+/[\w.-]+")
ERROR = re.compile(r"Traceback|^spectrodiff: |^spectrodiff \w+: error|Error\b|Warning\b", re.MULTILINE)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]


def output_problems(notebook):
    """Problems of the outputs: errors, stderr, error messages of commands, and absolute paths."""
    found, kinds = [], ("text/plain", "text/markdown")
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        if output.output_type == "error" or output.get("name") == "stderr":
            found.append(output)
        texts = [output.get("text", ""), *(output.get("data", {}).get(kind, "") for kind in kinds)]
        found += [match.group() for text in texts for rule in (PATH, ERROR) for match in rule.finditer(text)]
    return found


def undocumented_names(source):
    """What a cell uses or imports beyond our public face: names not in docs/reference.md, and private names."""
    names, imported = set(), set()
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case ast.ImportFrom(module=module, names=parts):
                imported |= {f"{module}.{part.name}" for part in parts}
            case ast.Import(names=parts):
                imported |= {part.name for part in parts}
    documented = {"spectrodiff", *re.findall(r"^::: (\S+)", REFERENCE.read_text(), re.MULTILINE)}
    private = {name for name in names if re.match(r"_(?!_|$)", name)}
    return private | {name for name in imported if name.startswith("spectrodiff") and name not in documented}


def test_all_notebooks_are_found():
    assert len(NOTEBOOKS) == 4


@each
def test_stored_outputs_are_complete_and_clean(path):
    """All cells were executed in order in a fresh kernel, and no output has a problem."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2
    assert output_problems(notebook) == []
    assert path.stat().st_size < 600_000


@each
def test_only_documented_names_are_used(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert set().union(*(undocumented_names(cell.source) for cell in cells)) == set()


@each
@pytest.mark.trial
def test_notebook_runs(path):
    before = set(FOLDER.iterdir())
    assert output_problems(runpy.run_path(str(FOLDER / "run.py"))["execute"](path)) == []
    assert set(FOLDER.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "has_problem"),
    [
        (
            {"output_type": "stream", "name": "stdout", "text": "data/mine: 0.003 s/s, https://a.org/b"},
            False,
        ),
        ({"output_type": "stream", "name": "stdout", "text": "see /usr/share/sounds/sf3/font.sf3"}, False),
        ({"output_type": "stream", "name": "stdout", "text": "in /home/me/data/mine"}, True),
        ({"output_type": "stream", "name": "stdout", "text": "well\nspectrodiff: no checkpoint 'nope'"}, True),
        ({"output_type": "stream", "name": "stderr", "text": "hm"}, True),
        ({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}, True),
        ({"output_type": "display_data", "data": {"text/markdown": "in /tmp/x/y"}, "metadata": {}}, True),
    ],
)
def test_output_problems_are_detected(output, has_problem):
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.from_dict(output)])
    assert bool(output_problems(nbformat.v4.new_notebook(cells=[cell]))) == has_problem


def test_undocumented_names_are_detected():
    source = """
import spectrodiff.files
import jax._src
from spectrodiff import Synthesizer, _MODULES
from spectrodiff.data.soundfont import play, require_fluidsynth
!ls _e
for _, x in y: x._f(_g=1)
__name__, public_name
"""
    theirs = {"spectrodiff.files", "spectrodiff._MODULES", "spectrodiff.data.soundfont.require_fluidsynth"}
    assert undocumented_names(source) == {"_f", "_g"} | theirs
