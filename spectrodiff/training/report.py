"""The report of a fine-tuning run: held-out metrics before and after training."""

import json
import pathlib

from spectrodiff.files import write_text


def write_report(workdir: pathlib.Path) -> str:
    """Writes `workdir/report.md`, a Markdown table of the held-out metrics before and after training, and returns it.

    Lower is better, except for roughness, which should be 1. A suffix "/NAME" means the dataset NAME alone. If the log
    has no held-out metrics, nothing is written and the result is empty.
    """
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    evaluated = [row for row in rows if any(name.startswith("heldout_") for name in row)]
    if not evaluated:
        return ""
    before, after = evaluated[0], evaluated[-1]
    lines = [f"| held out | before | after {after['step']} steps | change |", "|---|---|---|---|"]
    for name, value in after.items():
        if name in before and name.startswith("heldout_"):
            change = f"{value / before[name] - 1:+.1%}" if before[name] else ""
            lines.append(f"| {name.removeprefix('heldout_')} | {before[name]:.4f} | {value:.4f} | {change} |")
    text = "\n".join(lines) + "\n"
    write_text(workdir / "report.md", text)
    return text
