"""What the train loop says of its steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of what steps measured, over those that were not skipped, and how many were."""
    good = [row for row in rows if not row["skipped"]]
    means = {name: float(np.mean([row[name] for row in good])) for name in rows[0]} if good else {}
    return {**means, "skipped": float(len(rows) - len(good))}


def divergence_message(count: int, step: int, examples: Sequence[str]) -> str:
    """Why a run ends of which so many steps in a row were skipped; `examples` are the last one's."""
    return (
        f"{count} steps in a row, to step {step} or just before, had a loss or gradients that are not finite: lower "
        f"the learning rate, clip gradients, or look at the last one's examples, {', '.join(examples)}"
    )


def one_line(figures: Mapping[str, float]) -> str:
    """Figures as they are shown while a run goes on."""
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
