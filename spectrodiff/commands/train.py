"""`train`: a gin config to a trained model."""

import contextlib
import os
import pathlib
import typing
from typing import Any

from spectrodiff.commands.common import ROOT, keep_compiled_programs, keep_freed_memory
from spectrodiff.config import misfit
from spectrodiff.errors import InputError


def add(commands) -> None:
    parser = commands.add_parser("train", help="train a model from a gin config")
    parser.add_argument("--gin_file", action="append", required=True, help="a config; may be given more than once")
    parser.add_argument("--gin_param", action="append", default=[], help='one binding, such as "train.steps = 1000"')
    parser.add_argument("--workdir", required=True, help="where checkpoints, logs and the exported weights go")
    parser.set_defaults(run=_train)


def _train(options) -> None:
    keep_freed_memory()
    keep_compiled_programs()
    import gin

    from spectrodiff.training import loop, optimizers, spectrogram, vocoder  # noqa: F401 (configs refer to them)

    paths = []
    for path in options.gin_file:
        found = next((at for at in (pathlib.Path(path).absolute(), ROOT / path) if at.is_file()), None)
        if found is None:
            raise InputError(f"no config {path}; name a gin file, such as configs/tiny.gin")
        paths.append(str(found))
    gin.config.register_finalize_hook(_check_types)
    gin.add_config_file_search_path(os.getcwd())
    try:
        with contextlib.chdir(ROOT):  # where `include 'configs/base.gin'` is looked for, wherever one stands
            gin.parse_config_files_and_bindings(paths, options.gin_param)
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot use the config: {' '.join(str(error).split())}") from error
    for name in ("task", "optimizer", "steps"):
        try:
            gin.query_parameter(f"train.{name}")
        except ValueError:
            raise InputError(f"the config does not set train.{name}; include one of configs/ in it") from None
    loop.train(options.workdir)


def _check_types(config: dict[tuple[str, str], dict[str, Any]]) -> None:
    """Raises InputError for the first binding whose value is of another type than its parameter."""
    import gin

    for (_, selector), bindings in config.items():
        hints = typing.get_type_hints(gin.get_configurable(selector))
        for name, value in bindings.items():
            if name not in hints or isinstance(value, gin.config.ConfigurableReference):
                continue
            if kind := misfit(value, hints[name]):
                raise InputError(f"the config binds {selector.split('.')[-1]}.{name} to {value!r}, which is no {kind}")
