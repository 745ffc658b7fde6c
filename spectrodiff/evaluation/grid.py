"""Evaluations of several checkpoints, step counts and guidance weights, joined in one table: an ablation.

A workdir holds `cells/CELL`, the workdir of each evaluation, and the joined `table.md` and `results.json`.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from spectrodiff.evaluation.report import Column, Table, columns, footnotes, markdown_table
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
    """One evaluation; None is the checkpoint's own choice."""

    checkpoint: str
    steps: int | None
    guidance: float | None

    @property
    def folder(self) -> str:
        """The name of its workdir, which differs from that of any other cell."""
        return f"{file_name(self.checkpoint, 180)}, steps {_format(self.steps)}, guidance {_format(self.guidance)}"


def _format(value: int | float | None) -> str:
    return "default" if value is None else f"{value:g}"


def grid(checkpoints: Sequence[str], steps: Sequence[int | None], guidance: Sequence[float | None]) -> list[Cell]:
    """All cells, none twice; those of a checkpoint stand together, so that it is loaded once."""
    return [Cell(*values) for values in dict.fromkeys(itertools.product(checkpoints, steps, guidance))]


def evaluate_grid(
    cells: Sequence[Cell], workdir: pathlib.Path, run: Callable[[Cell, pathlib.Path], Results | None]
) -> list[Results] | None:
    """Has `run` evaluate each cell in its workdir, and joins them; after each, so that a table is there early.

    Cells go on where they stopped. None, and no table, where `run` returns None, having done a share of the songs.

    Raises:
      InputError: as `run`, or the workdir cannot be written.
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
    """Markdown: a row for each evaluation's synthesised songs, then the ceilings and floors of the first."""
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
    """What was the same in all runs."""
    first = found[0]["run"]
    return {name: value for name, value in first.items() if all(results["run"][name] == value for results in found)}
