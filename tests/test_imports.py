"""Imports go one way: what a module may know of is written in its rank."""

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


def part(path):
    """The top-level module or package that a file belongs to."""
    return path.parts[0].removesuffix(".py")


def imported(path):
    """The top-level parts of spectrodiff that a file imports, inside functions as well."""
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
    return parts - {part(path)}


def test_every_part_has_a_rank():
    assert {part(path) for path in MODULES} <= RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_imports_from_a_higher_rank(path):
    above = {name for name in imported(path) if RANK[name] > RANK[part(path)]}
    assert not above, f"{path} imports {sorted(above)}"


def test_there_are_no_cycles():
    graph = {}
    for path in MODULES:
        graph.setdefault(part(path), set()).update(imported(path))
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("audio") < order.index("notes") < order.index("models") < order.index("cli")


def test_the_checker_sees_imports():
    assert imported(pathlib.Path("models/diffusion_decoder.py")) >= {"audio", "config", "diffusion"}
    assert "models" not in imported(pathlib.Path("diffusion/samplers.py"))


def test_synthesis_imports_nothing_that_only_others_need():
    """Each of these would delay the first sound by a quarter of a second or more."""
    code = "import sys, spectrodiff; spectrodiff.Synthesizer; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "spectrodiff.synthesizer" in modules
    assert not {"scipy.signal", "scipy.sparse", "matplotlib", "note_seq", "grain", "orbax.checkpoint"} & set(modules)
