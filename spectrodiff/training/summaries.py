"""Summaries of the metrics of training steps, for the log and for messages."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def mean_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each metric over the steps that were not skipped, and the number of `skipped` steps."""
    good = [row for row in rows if not row["skipped"]]
    means = {name: float(np.mean([row[name] for row in good])) for name in rows[0]} if good else {}
    return {**means, "skipped": float(len(rows) - len(good))}


def divergence_message(count: int, step: int, examples: Sequence[str]) -> str:
    """Returns the message of a run that ends because `count` steps in a row were skipped.

    `examples` are the sources of the examples of the last of these steps.
    """
    return (
        f"{count} steps in a row, to step {step} or just before, had a loss or gradients that are not finite: lower "
        f"the learning rate, clip gradients, or look at the last one's examples, {', '.join(examples)}"
    )


def one_line(figures: Mapping[str, float]) -> str:
    """Formats metrics as one line of three significant digits each."""
    return "  ".join(f"{name} {value:.3g}" for name, value in figures.items())
