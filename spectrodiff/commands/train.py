"""`train`: trains a model from a gin config."""

import argparse

from spectrodiff.commands.common import keep_compiled_programs, keep_freed_memory, set_xla_flags
from spectrodiff.errors import InputError, reason

_MOST_DEVICES = 1024


def add(commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model from a gin config",
        examples=[
            "train --gin_file demo.gin --workdir runs/demo",
            'train --gin_file small.gin --gin_param "train.steps = 1000" --workdir runs/small',
            "train --gin_file base.gin --dry_run --devices 8",
            "train --gin_file base.gin --dry_run --tpu v5p:2x2x2",
        ],
        usage="%(prog)s --gin_file GIN_FILE --workdir WORKDIR [options]",
    )
    config = parser.add_argument_group("config")
    config.add_argument(
        "--gin_file",
        action="append",
        required=True,
        help="a config: a file, or the name of a packaged one, such as demo.gin; may be given more than once",
    )
    config.add_argument("--gin_param", action="append", default=[], help='one binding, such as "train.steps = 1000"')
    run = parser.add_argument_group("run")
    run.add_argument("--workdir", help="folder for checkpoints, logs and exported weights")
    run.add_argument("--profile", type=_steps, metavar="FROM:TO", help="profile these steps into WORKDIR/profile")
    dry = parser.add_argument_group("dry run")
    dry.add_argument(
        "--dry_run",
        action="store_true",
        help="compile the training step without data, print its memory, operations and largest arrays, and stop",
    )
    dry.add_argument("--devices", type=int, default=1, help="virtual devices of the dry run, on the CPU (default: 1)")
    dry.add_argument(
        "--tpu",
        metavar="TOPOLOGY",
        help="TPUs of the dry run instead, such as v5p:2x2x2; needs no TPU, but the package libtpu",
    )
    several = parser.add_argument_group("several processes")
    several.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes, described by the environment of the cluster",
    )
    several.add_argument(
        "--coordinator", type=_address, metavar="HOST:PORT", help="address of the first of several processes"
    )
    several.add_argument("--processes", type=int, help="number of processes")
    several.add_argument("--process", type=int, help="number of this process, from 0")
    parser.set_defaults(run=_train)


def _steps(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is no range of steps, such as 20:30")
    return int(first), int(last)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise argparse.ArgumentTypeError(f"{text!r} is no address, such as 10.0.0.1:1234")
    return text


def _join(options) -> None:
    """Joins the other processes of the run, if there are any; has to be called before JAX initializes its devices."""
    explicit = {"--coordinator": options.coordinator, "--processes": options.processes, "--process": options.process}
    missing = [flag for flag, value in explicit.items() if value is None]
    if not options.distributed and len(missing) == len(explicit):
        return
    if len(missing) not in (0, len(explicit)):
        raise InputError(f"{', '.join(missing)} is missing: a process of several needs all of {', '.join(explicit)}")
    import jax

    try:
        jax.distributed.initialize(options.coordinator, options.processes, options.process)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"cannot join the other processes: {reason(error)}") from error


def _dry_run(options) -> None:
    import gin
    import jax

    if not 1 <= options.devices <= _MOST_DEVICES:
        raise InputError(f"--devices is {options.devices}; choose 1 to {_MOST_DEVICES}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", options.devices)
    # XLA's default order of operations for CPUs favours parallelism at the price of memory; remat then saves next to
    # nothing.
    set_xla_flags("--xla_cpu_enable_concurrency_optimized_scheduler=false")
    from spectrodiff.training.dry_run import dry_run, tpu_devices
    from spectrodiff.training.gin_config import read_config

    read_config(options.gin_file, options.gin_param)
    devices = tpu_devices(options.tpu) if options.tpu else None
    print("compiling; large models take minutes", flush=True)
    print(dry_run(**gin.get_bindings("train"), devices=devices))


def _train(options) -> None:
    if options.dry_run:
        _dry_run(options)
        return
    if options.workdir is None:
        raise InputError("--workdir is missing: name a folder for checkpoints, logs and exported weights")
    keep_freed_memory()
    keep_compiled_programs()
    _join(options)
    from spectrodiff.training import loop
    from spectrodiff.training.gin_config import read_config, used_config

    read_config(options.gin_file, options.gin_param)
    given = {"profile": options.profile} if options.profile else {}
    loop.train(options.workdir, describe=used_config, **given)
