"""Throughput of the data pipeline alone and of training, and the time that training waits for data.

python benchmarks/throughput.py --gin_file configs/demo.gin [--gin_param "Mixture.data_dir = 'data'"]
python benchmarks/throughput.py --gin_file configs/small.gin --gin_param "SpectrogramTask.batch_size = 1" --steps 5
python benchmarks/throughput.py --gin_param "SpectrogramTask.loader = @ResidentLoader()"
"""

# ruff: noqa: E402 (memory is set up before JAX is imported, as `spectrodiff train` does)

import argparse
import json
import pathlib
import tempfile
import time

from spectrodiff.commands.common import keep_compiled_programs, keep_freed_memory

keep_freed_memory()
keep_compiled_programs()

import gin
import jax
import numpy as np

from spectrodiff.training import loop
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", default="configs/demo.gin")
    parser.add_argument("--gin_param", action="append", default=[], help='a binding, such as "Loader.threads = 4"')
    parser.add_argument("--examples", type=int, default=2000, help="to read without training (default: 2000)")
    parser.add_argument("--steps", type=int, default=100, help="to train, 2 or more (default: 100)")
    options = parser.parse_args()
    read_config([options.gin_file], options.gin_param)
    alone(gin.get_bindings("train")["task"], options.examples)
    training(options.steps)


def alone(task: Task, examples: int) -> None:
    """Measures the data pipeline alone, while it reads records and again when most of them are cached."""
    batches = task.batches(seed=0)
    size = len(next(iter(next(batches).values())))
    count = -(-examples // size)
    for name in ("while reading", "once read"):
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(count):
            jax.block_until_ready(next(batches))
        wall, cpu = time.perf_counter() - start, time.process_time() - cpu
        print(f"alone, {name}: {count * size / wall:.0f} examples/s, {1000 * cpu / count / size:.1f} ms of CPU each")
    if hasattr(batches, "close"):
        batches.close()


def training(steps: int) -> None:
    """The train loop itself, without held-out figures; what it logs after the first steps, which compile."""
    every = max(1, min(10, steps // 2))
    with tempfile.TemporaryDirectory() as workdir:
        loop.train(workdir, evaluators=(), steps=steps, log_every=every, checkpoint_every=steps)
        log = [json.loads(line) for line in pathlib.Path(workdir, "log.jsonl").read_text().splitlines()]
    rows = [row for row in log if "waiting" in row and row["step"] > every]
    names = ("examples_per_second", "utilisation", "waiting")
    speed, used, waiting = (np.array([row[name] for row in rows]) for name in names)
    print(
        f"training: {np.median(speed):.3g} examples/s, utilisation {np.median(used):.0%}; {np.mean(waiting):.2%} of "
        f"the time waiting for data ({np.max(waiting):.2%} in the worst {every} steps)"
    )


if __name__ == "__main__":
    main()
