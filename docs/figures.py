"""Plots the curves of training runs: python docs/figures.py OUT.png LOG.jsonl [LOG.jsonl ...], one column each."""

import json
import pathlib
import sys

from matplotlib.figure import Figure

FIGURES = {"loss": "training loss", "heldout_mel_l1": "held-out log-mel L1, nats", "heldout_roughness": "roughness"}


def main(out: str, *logs: str) -> None:
    figure = Figure(figsize=(4.5 * max(2, len(logs)), 7), layout="constrained")
    axes = figure.subplots(len(FIGURES), len(logs), sharex="col", squeeze=False)
    for column, path in zip(axes.T, logs, strict=True):
        rows = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
        column[0].set_title(pathlib.Path(path).parent.name, fontsize="medium")
        for axis, (name, label) in zip(column, FIGURES.items(), strict=True):
            points = [(row["step"], row[name]) for row in rows if name in row and row["step"] > 1]
            if not points:
                axis.set_visible(False)
                continue
            axis.plot(*zip(*points, strict=True), marker="." if len(points) < 60 else "", linewidth=1)
            axis.set_ylabel(label, fontsize="small")
            axis.grid(alpha=0.3)
        column[-1].axhline(1.0, color="grey", linewidth=0.8)
        for axis in column:
            axis.set_xlabel("step", fontsize="small")
            axis.tick_params(labelbottom=True)
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main(*sys.argv[1:])
