"""Plots the curves of training runs, one column for each: python docs/figures.py OUT.png LOG.jsonl [LOG.jsonl ...]

What no run has logged gets no row. For a single run, the held-out error of the mean of the context is drawn as a dashed
line: a model that has learnt anything from the notes is below it.
"""

import json
import pathlib
import sys

from matplotlib.figure import Figure

FIGURES = {
    "loss": "training loss",
    "heldout_mel_l1": "held-out log-mel L1, nats",
    "gradient_norm": "gradient norm",
    "heldout_roughness": "roughness",
    "heldout_mel": "held-out mel distance, nats",
    "heldout_log_magnitude": "held-out log magnitudes, nats",
}


def main(out: str, *logs: str) -> None:
    runs = [[json.loads(line) for line in pathlib.Path(path).read_text().splitlines()] for path in logs]
    shown = [name for name in FIGURES if any(name in row for rows in runs for row in rows)]
    figure = Figure(figsize=(4.5 * max(1.5, len(logs)), 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), len(logs), sharex="col", squeeze=False)
    for column, path, rows in zip(axes.T, logs, runs, strict=True):
        if len(logs) > 1:
            column[0].set_title(pathlib.Path(path).parent.name, fontsize="medium")
        for axis, name in zip(column, shown, strict=True):
            points = [(row["step"], row[name]) for row in rows if name in row and row["step"] > 1]
            if not points:
                axis.set_visible(False)
                continue
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", linewidth=1)
            if name == "heldout_roughness":
                axis.axhline(1.0, color="grey", linewidth=0.8)
            if name == "heldout_mel_l1" and len(logs) == 1 and "context_mean" in rows[0]:
                axis.axhline(rows[0]["context_mean"], color="grey", linestyle="--", linewidth=1)
                axis.set_ylim(bottom=0)
            axis.set_ylabel(FIGURES[name], fontsize="small")
            axis.grid(alpha=0.3)
            axis.set_xlabel("step", fontsize="small")
            axis.tick_params(labelbottom=True)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__.splitlines()[0])
    main(*sys.argv[1:])
