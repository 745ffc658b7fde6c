"""Dependencies between the parts of the package: each part imports only from its own rank or lower ones."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "spectrodiff"
RANKS = [
    {"config", "errors", "files", "fingerprint"},
    {"notes", "audio", "diffusion"},
    {"models", "vocoder", "data"},
    {"pretrained", "mel_sampler", "synthesizer", "training", "plot"},
    {"evaluation", "app"},
    {"commands"},
    {"cli", "space"},
    {"__main__", "__init__"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(path):
    """The top-level module or package that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def imported_parts(path):
    """The top-level parts of spectrodiff that a file imports, also within functions."""
    parts = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        split = [name.split(".") for name in names]
        parts |= {name[1] for name in split if name[0] == "spectrodiff" and len(name) > 1 and name[1] in RANK}
    return parts - {part_of(path)}


def test_every_part_has_a_rank():
    assert {part_of(path) for path in MODULES} <= RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_modules_import_no_higher_rank(path):
    above = {name for name in imported_parts(path) if RANK[name] > RANK[part_of(path)]}
    assert not above, f"{path} imports {sorted(above)}"


def test_parts_have_no_import_cycles():
    graph = {}
    for path in MODULES:
        graph.setdefault(part_of(path), set()).update(imported_parts(path))
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("audio") < order.index("notes") < order.index("models") < order.index("cli")


def test_imported_parts_finds_imports():
    assert imported_parts(pathlib.Path("models/diffusion_decoder.py")) >= {"audio", "config", "diffusion"}
    assert "models" not in imported_parts(pathlib.Path("diffusion/samplers.py"))


def test_synthesizer_imports_no_unneeded_package():
    """Each of these takes a quarter of a second or more to import."""
    code = "import sys, spectrodiff; spectrodiff.Synthesizer; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "spectrodiff.synthesizer" in modules
    assert not {"scipy.signal", "scipy.sparse", "matplotlib", "note_seq", "grain", "orbax.checkpoint"} & set(modules)
