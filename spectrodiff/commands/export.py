"""`export`: writes the weights of a training run's checkpoint."""

import pathlib

from spectrodiff.errors import InputError
from spectrodiff.files import local_path, replacing_folder


def add(commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a run's weights as safetensors and JSON",
        examples=["export runs/demo my_weights", "export runs/demo my_weights --step 20000 --last"],
    )
    parser.add_argument(
        "workdir", metavar="WORKDIR", type=pathlib.Path, help="folder of the run, which may still be training"
    )
    parser.add_argument("destination", metavar="DST", help="folder to write, which must not exist or be empty")
    parser.add_argument("--step", type=int, help="a step with a checkpoint (default: the last)")
    parser.add_argument("--last", action="store_true", help="the parameters themselves instead of their moving average")
    parser.set_defaults(run=_export)


def _export(options) -> None:
    for folder in (options.workdir, options.destination):
        local_path(folder)
    config = options.workdir / "config.gin"
    if not config.is_file():
        raise InputError(f"{options.workdir} is not the folder of a run: it has no config.gin")
    import gin

    from spectrodiff.training.export import export
    from spectrodiff.training.gin_config import read_config

    read_config([str(config)], [])
    bound = gin.get_bindings("train")
    run = {name: bound[name] for name in ("task", "adaptation", "seed") if name in bound}
    with replacing_folder(options.destination) as folder:
        step = export(options.workdir, folder, **run, step=options.step, ema=not options.last)
    print(f"step {step}: weights are in {options.destination}")
