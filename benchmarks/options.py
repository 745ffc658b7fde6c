"""Ablation of the options of the demo models: short runs of one config, each with one change, with one seed.

python benchmarks/options.py --gin_file demo_diffusion.gin --steps 500 --workdir runs/options
"""

import argparse
import json
import pathlib
import subprocess
import sys

VARIANTS = {
    "unchanged": [],
    "without the note roll": ["ModelConfig.note_roll = False"],
    "... nor event times": ["ModelConfig.note_roll = False", "ModelConfig.event_times = False"],
    "... nor compact notes": [
        "ModelConfig.note_roll = False",
        "ModelConfig.event_times = False",
        "ModelConfig.compact_notes = False",
    ],
    "with AdamW instead of Muon": ["train.optimizer = @adamw()", "adamw.learning_rate = 2e-3", "adamw.warmup = 200"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default="demo_diffusion.gin")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/options"))
    parser.add_argument("--gin_param", action="append", default=[], help="a binding for every run")
    options = parser.parse_args()
    for name, bindings in VARIANTS.items():
        workdir = options.workdir / name.strip(". ").replace(" ", "_")
        if workdir.exists():
            sys.exit(f"{workdir} exists: these runs start afresh; name another --workdir")
        command = [sys.executable, "train.py", "--gin_file", options.gin_file, "--workdir", str(workdir)]
        for binding in [f"train.steps = {options.steps}", *bindings, *options.gin_param]:
            command += ["--gin_param", binding]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        log = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
        last = next(row for row in reversed(log) if "heldout_mel_l1" in row)
        speeds = sorted(row["examples_per_second"] for row in log if "examples_per_second" in row)
        score = f"{last['heldout_mel_l1']:.3f} nats, roughness {last['heldout_roughness']:.3f}"
        print(f"{name:>26}  held-out mel L1 {score}, {speeds[len(speeds) // 2]:.1f} examples/s", flush=True)


if __name__ == "__main__":
    main()
