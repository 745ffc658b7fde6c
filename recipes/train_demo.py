"""Trains a spectrogram model and its vocoder from nothing, on the accelerator of this machine, within a time limit.

python recipes/train_demo.py --out runs/first                                  everything, with the default limits
python recipes/train_demo.py --out runs/first --carried runs/before            goes on from a copy of an earlier --out
python recipes/train_demo.py --out runs/try --hours 0.2 --configs tiny melgan --minutes 1 1     whether all of it runs

Renders the corpus on all cores, then trains each of `--configs` for its `--minutes`, with the corpus in the memory of
the accelerator. State and averaged weights are written to OUT/CONFIG every two minutes, and the same command continues
what was stopped or killed; minutes count over all calls, and include the reading of the corpus. Held-out figures are
printed in the end.
"""

import argparse
import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent
BINDINGS = (
    "ModelConfig.dtype = 'bfloat16'",
    "SpectrogramTask.loader = @ResidentLoader()",
    "VocoderTask.loader = @ResidentAudioLoader()",
    "AdversarialTask.loader = @ResidentAudioLoader()",
    "train.checkpoints_kept = 1",
)
TICK = 5.0  # seconds between notes of the time spent


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the runs")
    parser.add_argument("--carried", type=pathlib.Path, help="an earlier --out, which is copied to a new one")
    parser.add_argument("--data_dir", type=pathlib.Path, default=pathlib.Path("data"))
    parser.add_argument("--hours", type=float, default=24.0, help="of the rendered corpus (default: 24)")
    parser.add_argument("--configs", nargs="+", default=["demo_wide", "melgan", "melgan_gan"], help="of configs/")
    parser.add_argument("--minutes", nargs="+", type=float, default=[60.0, 20.0, 40.0], help="of each config")
    parser.add_argument("--export_minutes", type=float, default=2.0, help="interval of saving and exporting")
    parser.add_argument("--gin_param", action="append", default=[], help="a binding for all configs")
    options = parser.parse_args(arguments)
    if len(options.minutes) != len(options.configs):
        parser.error(f"--minutes has {len(options.minutes)} limits for {len(options.configs)} --configs")
    for name in ("out", "data_dir"):
        setattr(options, name, getattr(options, name).absolute())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the command that runs, too
    if options.carried and not options.out.exists():
        shutil.copytree(options.carried, options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    render(options.data_dir, options.hours)
    for config, minutes in zip(options.configs, options.minutes, strict=True):
        train(config, minutes, options)
    for config in options.configs:
        print(f"{config}: {heldout(options.out / config)}", flush=True)
    print(
        f"to listen: spectrodiff synthesize --checkpoint {options.out / options.configs[0] / 'export'} ...", flush=True
    )


def render(data_dir: pathlib.Path, hours: float) -> None:
    """Prepares the rendered corpus, unless it is there; one that was interrupted is continued."""
    if any((data_dir / "rendered").rglob("dataset_info.json")):
        return
    run(["-m", "spectrodiff", "prepare", "rendered", "--data_dir", data_dir, "--hours", hours])


def train(config: str, minutes: float, options: argparse.Namespace) -> None:
    """Trains a config for what is left of its minutes."""
    workdir, spent = options.out / config, Spent(options.out / "minutes.json", config)
    left = minutes - spent.minutes
    if left <= 0:
        print(f"{config}: all of its {minutes:g} minutes are spent", flush=True)
        return
    limits = f"train.stop_after_minutes = {left}", f"train.export_minutes = {options.export_minutes}"
    data = f"Mixture.data_dir = '{options.data_dir}'"
    bindings = [*BINDINGS, *limits, data, *options.gin_param]
    before = options.out / config.removesuffix("_gan") / "export"
    if config.endswith("_gan") and before.exists():
        bindings.append(f"train.init_from = '{before}'")
    command = ["train.py", "--gin_file", f"configs/{config}.gin", "--workdir", workdir]
    run([*command, *(part for binding in bindings for part in ("--gin_param", binding))], spent)


class Spent:
    """The minutes that were spent on a config, over all calls, in a file that also survives a kill."""

    def __init__(self, path: pathlib.Path, config: str):
        self.path, self.config = path, config
        self.all = json.loads(path.read_text()) if path.exists() else {}
        self.minutes = self.all.get(config, 0.0)

    def add(self, seconds: float) -> None:
        self.minutes += seconds / 60
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({**self.all, self.config: self.minutes}))
        temporary.replace(self.path)


def run(arguments: Sequence, spent: Spent | None = None) -> None:
    """Runs Python with these arguments in the repository, and ends with its status if that is not 0.

    The command is asked to stop if this process is.
    """
    print("$ python " + " ".join(f'"{a}"' if " " in str(a) else str(a) for a in arguments), flush=True)
    process, start = subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT), time.monotonic()
    try:
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(TICK)
            if spent is not None:
                now = time.monotonic()
                spent.add(now - start)
                start = now
    finally:
        process.terminate()
        process.wait()
    if process.returncode:
        sys.exit(process.returncode)


def heldout(workdir: pathlib.Path) -> str:
    """Returns the last held-out figures in the log of a run."""
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    found = [row for row in rows if any(name.startswith("heldout") for name in row)]
    if not found:
        return "no held-out figures"
    figures = [f"{name} {value:.3f}" for name, value in found[-1].items() if name.startswith("heldout")]
    return f"step {found[-1]['step']}: {', '.join(figures)}"


if __name__ == "__main__":
    main()
