"""Grids of evaluations and their common table, from fabricated results; test_evaluate_command runs the command."""

from spectrodiff.evaluation.evaluate import Cell, evaluate_grid, grid
from spectrodiff.evaluation.rendering import NOISE, SYNTHESISED, TRUE
from spectrodiff.evaluation.report import joined


def make_result(cell, mel):
    """The result of a cell whose checkpoint samples 8 steps by default."""
    sampling = {"steps": cell.steps or 8, "guidance": cell.guidance or 1.0}
    run = {"checkpoint": cell.checkpoint, "split": "test", "sampling": sampling}
    return {
        "run": run,
        "model": {"parameters": 104_000_000, "with_context": "no" not in cell.checkpoint},
        "songs": 2,
        "seconds": 90.0,
        "dropped_notes": 0,
        "batch": [4],
        "embeddings": {},
        "transcriber": None,
        "families": {},
        "remarks": ["common", cell.folder],
        "systems": {SYNTHESISED: {"mel": mel}, TRUE: {"mel": 0.0}, NOISE: {"mel": 3.0}},
    }


def test_grid_groups_cells_by_checkpoint_without_duplicates():
    cells = grid(["small", "base"], [None, 4], [1.0, 2.0, 1.0])
    assert cells[:4] == [
        Cell("small", None, 1.0),
        Cell("small", None, 2.0),
        Cell("small", 4, 1.0),
        Cell("small", 4, 2.0),
    ]
    assert len(cells) == 8


def test_different_cells_have_different_folders():
    cells = [*grid(["a/b", "a%2Fb"], [None, 1, 12], [None, 2.0, 2.5]), *grid(["a"], [12], [0.1, 0.11])]
    assert len({cell.folder for cell in cells}) == len(cells)
    assert all("/" not in cell.folder for cell in cells)


def test_table_lists_evaluations_then_reference_systems():
    cells = grid(["small", "small_no_context"], [None], [1.0, 2.0])
    lines = joined([make_result(cell, 0.1 * index) for index, cell in enumerate(cells)]).splitlines()
    shown = [[text.strip() for text in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    mel = shown[0].index("Log-mel L1 ↓")
    assert [[*row[:5], row[mel]] for row in shown[2:]] == [
        ["small", "104.0", "yes", "8", "1.00", "0.00"],
        ["small", "104.0", "yes", "8", "2.00", "0.10"],
        ["small_no_context", "104.0", "none", "8", "1.00", "0.20"],
        ["small_no_context", "104.0", "none", "8", "2.00", "0.30"],
        ["True audio", *"––––", "0.00"],  # noqa: RUF001
        ["White noise", *"––––", "3.00"],  # noqa: RUF001
    ]
    said = "\n".join(lines[len(shown) :])
    assert "split test, steps 8" in said  # settings that all cells share
    assert "guidance" not in said.split("\n- Fréchet")[0]
    assert said.count("- common\n") == 1


def test_table_is_written_after_the_first_cell(tmp_path):
    cells, seen = grid(["small"], [None], [1.0, 2.0]), []

    def run(cell, workdir):
        assert workdir == tmp_path / "cells" / cell.folder
        seen.append((tmp_path / "table.md").is_file())
        return make_result(cell, 0.5)

    assert len(evaluate_grid(cells, tmp_path, run)) == 2
    assert seen == [False, True]
    assert evaluate_grid(cells, tmp_path / "shard", lambda cell, workdir: None) is None


def test_cell_folder_names_are_short_and_unique():
    cells = grid(["/data/" + "\u00e9" * 100 + end for end in "ab"], [None, 1000], [None, 1.25])
    assert len({cell.folder for cell in cells}) == 8
    assert all(len(cell.folder) <= 255 for cell in cells)
