"""Trains a tiny model, for tests that need a process of its own: to kill, or with other devices.

python tests/run_training.py CORPUS WORKDIR '{"steps": 4}' [COORDINATOR PROCESSES PROCESS]

With "line" for a corpus it trains `Line` instead.
"""

import dataclasses
import json
import sys

import jax
from inputs import OURS
from line import Line

from spectrodiff.data.mixture import Mixture
from spectrodiff.training import loop
from spectrodiff.training.optimizers import adafactor, adamw
from spectrodiff.training.spectrogram import SpectrogramTask

BATCH = 8


def train(corpus, workdir, **options):
    """Dropout is on, so that its randomness must agree too; every step is logged, and nothing evaluated."""
    options = {"log_every": 1} | options
    if corpus == "line":
        loop.train(workdir, task=Line(pause=0.05), optimizer=adamw(0.1), **options)
        return
    config = dataclasses.replace(OURS, model=dataclasses.replace(OURS.model, dropout=0.1))
    task = SpectrogramTask(Mixture(str(corpus)), config, batch_size=BATCH, tokens=256)
    loop.train(workdir, task=task, optimizer=adafactor(1e-2), **options)


if __name__ == "__main__":
    corpus, workdir, options, *others = sys.argv[1:]
    if others:
        address, processes, process = others
        jax.distributed.initialize(address, int(processes), int(process), shutdown_timeout_seconds=30)
    for run in json.loads(options) if options.startswith("[") else [json.loads(options)]:
        train(corpus, run.pop("workdir", workdir), **run)
