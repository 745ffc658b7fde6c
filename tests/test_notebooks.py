"""The notebooks run, what is kept of their outputs is fit to be read elsewhere, and they use nothing private."""

import ast
import pathlib
import re
import runpy

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# A path from the root: of two parts at least, not in an address, and not where Debian has what it shares.
PATH = re.compile(r"(?<![\w.:/<>*-])/(?!usr/share/)[\w.-]+/[\w.-]+")
COMPLAINT = re.compile(r"Traceback|^spectrodiff: |^spectrodiff \w+: error|Error\b|Warning\b", re.MULTILINE)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source]


def flaws(notebook):
    """What is wrong with the outputs: errors, stderr, complaints of commands, and paths of the machine."""
    found, kinds = [], ("text/plain", "text/markdown")
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        if output.output_type == "error" or output.get("name") == "stderr":
            found.append(output)
        texts = [output.get("text", ""), *(output.get("data", {}).get(kind, "") for kind in kinds)]
        found += [match.group() for text in texts for rule in (PATH, COMPLAINT) for match in rule.finditer(text)]
    return found


def private_names(source):
    """The names with a leading underscore that a cell uses or imports, other than `_` alone and Python's own."""
    names = set()
    for node in ast.walk(ast.parse(TransformerManager().transform_cell(source))):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                names.add(name)
            case ast.ImportFrom(module=module, names=imported):
                names |= {*module.split("."), *(alias.name for alias in imported)}
            case ast.Import(names=imported):
                names |= {part for alias in imported for part in alias.name.split(".")}
    return {name for name in names if re.match(r"_(?!_|$)", name)}


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 4


@each
def test_outputs_are_kept(path):
    """All cells were executed, in order and from the first, and nothing that they put out would puzzle a reader."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2
    assert flaws(notebook) == []
    assert path.stat().st_size < 600_000


@each
def test_only_the_public_face_is_used(path):
    cells = code_cells(nbformat.read(path, as_version=4))
    assert set().union(*(private_names(cell.source) for cell in cells)) == set()


@each
@pytest.mark.trial
def test_it_runs(path):
    before = set(FOLDER.iterdir())
    assert flaws(runpy.run_path(str(FOLDER / "run.py"))["execute"](path)) == []
    assert set(FOLDER.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "flawed"),
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
def test_flaws_are_found(output, flawed):
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.from_dict(output)])
    assert bool(flaws(nbformat.v4.new_notebook(cells=[cell]))) == flawed


def test_private_names_are_found():
    source = "import a._b\nfrom c import _d\n!ls _e\nfor _, x in y: x._f(_g=1)\n__name__, public_name"
    assert private_names(source) == {"_b", "_d", "_f", "_g"}
