"""Starts training in processes of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys

TESTS = pathlib.Path(__file__).parent


def start(corpus, workdir, options, *others, devices=1):
    return start_python(TESTS / "run_training.py", corpus, workdir, json.dumps(options), *others, devices=devices)


def start_python(*arguments, devices=1):
    """Python with these arguments, from the checkout and on CPU devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=TESTS.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def finish(process, status=0):
    """What a process printed; it must end with `status`."""
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output[-3000:]
    return output


def stepped(workdir, step):
    """Whether a run that logs every step has come to `step`."""
    log = workdir / "log.jsonl"
    return log.is_file() and f'"step": {step},' in log.read_text()


def losses(workdir):
    """By step."""
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}
