"""An ablation: evaluations of several checkpoints, numbers of sampling steps and guidance weights, in one table.

A workdir holds `cells/CELL`, the workdir of each evaluation, and the joined `table.md` and `results.json`.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from spectrodiff.evaluation.report import Column, Table, columns, footnotes, markdown_table
from spectrodiff.evaluation.runs import named_settings
from spectrodiff.evaluation.systems import SYNTHESISED, SYSTEMS
from spectrodiff.files import file_name, replacing, write_json

Results = dict[str, Any]  # what `evaluate` returns

_SETTINGS = (
    Column("parameters", "Parameters (M)", 1),
    Column("context", "Context"),
    Column("steps", "Steps", 0),
    Column("guidance", "Guidance", 2),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluation of the grid. `steps` and `guidance` are None where the checkpoint's own are taken."""

    checkpoint: str
    steps: int | None
    guidance: float | None

    @property
    def folder(self) -> str:
        """The name of the evaluation's workdir, which differs from that of any other cell."""
        return f"{file_name(self.checkpoint, 180)}, steps {_format(self.steps)}, guidance {_format(self.guidance)}"


def _format(value: int | float | None) -> str:
    return "default" if value is None else f"{value:g}"


def grid(checkpoints: Sequence[str], steps: Sequence[int | None], guidance: Sequence[float | None]) -> list[Cell]:
    """Returns all combinations, none twice. Those of a checkpoint follow one another, so that it is loaded once."""
    return [Cell(*values) for values in dict.fromkeys(itertools.product(checkpoints, steps, guidance))]


def evaluate_grid(
    cells: Sequence[Cell], workdir: pathlib.Path, run: Callable[[Cell, pathlib.Path], Results | None]
) -> list[Results] | None:
    """Calls `run` with each cell and its workdir, and joins the results in one table.

    The table is written after each cell, so that it is there early. A cell that was interrupted is continued. Where
    `run` returns None, as it does having worked on one shard of the songs, there is no table, and None is returned.

    Raises:
      InputError: `run` raises it, or the workdir cannot be written.
    """
    found = []
    for cell in cells:
        result = run(cell, workdir / "cells" / cell.folder)
        if result is None:
            continue
        found.append(result)
        write_json(workdir / "results.json", {"cells": found})
        with replacing(workdir / "table.md") as temporary:
            temporary.write_text(joined(found), encoding="utf-8")
    return found or None


def joined(found: Sequence[Results]) -> str:
    """Formats results as one Markdown table.

    It has a row for the synthesised songs of each evaluation, then the rows of the other systems in the first one.
    """
    rows = [(results["run"]["checkpoint"], _settings(results) | results["systems"][SYNTHESISED]) for results in found]
    others = {name: figures for name, figures in found[0]["systems"].items() if name != SYNTHESISED}
    rows += [(SYSTEMS[name], figures) for name, figures in others.items()]
    table = Table("grid", "Checkpoint or system", [*_SETTINGS, *columns(found[0])], rows)
    remarks = dict.fromkeys(line for results in found for line in results["remarks"])
    said = [line for line in footnotes({**found[0], "run": _common(found)}) if line not in remarks]
    return markdown_table(table) + "\n\n" + "\n".join(f"- {line}" for line in [*said, *remarks]) + "\n"


def _settings(results: Results) -> dict[str, Any]:
    run, model = results["run"], results["model"]
    return {
        "parameters": model["parameters"] / 1e6,
        "context": "yes" if model["with_context"] else "none",
        "steps": run["sampling"].get("steps"),
        "guidance": run["sampling"].get("guidance"),
    }


def _common(found: Sequence[Results]) -> dict[str, Any]:
    """Returns the settings that all runs have in common."""
    first, *others = (named_settings(results["run"]) for results in found)
    return {name: value for name, value in first.items() if all(name in run and run[name] == value for run in others)}
