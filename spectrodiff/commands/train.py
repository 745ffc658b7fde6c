"""`train`: trains a model from a gin config."""

import argparse
import functools
import io
import pathlib
import re
import typing
from collections.abc import Sequence
from typing import Any

from spectrodiff.commands.common import keep_compiled_programs, keep_freed_memory, packaged, set_xla_flags
from spectrodiff.config import misfit
from spectrodiff.errors import InputError, reason

_MOST_DEVICES = 1024
_INCLUDE = re.compile(r"""^include[ \t]+(['"])(?P<path>.+?)\1[ \t]*(#.*)?$""", re.MULTILINE)
# Parameters whose values are returned by functions, so that `@adamw` means `@adamw()`.
_MADE = ("train.task", "train.optimizer", "train.adaptation", "train.evaluators")


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
    read_config(options.gin_file, options.gin_param)
    from spectrodiff.training.dry_run import dry_run, tpu_devices

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
    read_config(options.gin_file, options.gin_param)
    from spectrodiff.training import loop

    given = {"profile": options.profile} if options.profile else {}
    loop.train(options.workdir, describe=_used_config, **given)


def _used_config() -> str:
    """Returns all settings that the run uses, as a config, and prints the bindings that are not used."""
    import gin

    config = gin.operative_config_str()
    used = {known for name in _bound(config) for known in (name, name.rpartition("/")[2])}  # in a scope is used too
    if unused := sorted(_bound(gin.config_str()) - used):
        print(f"of the config nothing uses {', '.join(unused)}", flush=True)
    return config


def _bound(config: str) -> set[str]:
    """Returns the names of a config's bindings."""
    return set(re.findall(r"^([\w./]+\.\w+) =", config, re.MULTILINE))


def read_config(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads a training config into gin: files, or packaged configs by name, then bindings.

    It replaces the config that gin had before.

    Raises:
      InputError: there is no such file, or the config is wrong or incomplete; the message has the first error.
    """
    import gin

    from spectrodiff.training import (  # noqa: F401 (for configs)
        adaptation,
        adversarial,
        evaluators,
        loop,
        optimizers,
        refiner,
        spectrogram,
        vocoder,
    )

    _register_check()
    gin.clear_config()
    try:
        for path in files:
            _parse(_find(path))
        gin.parse_config(list(bindings))
        gin.finalize()
    except InputError:
        raise
    except ImportError as error:
        raise InputError(
            f"cannot import what the config imports: {error}; PYTHONPATH has to name the folder of your own modules"
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"cannot use the config: {' '.join(str(error).split())}") from error
    for name in ("task", "optimizer", "steps"):
        try:
            gin.query_parameter(f"train.{name}")
        except ValueError:
            raise InputError(
                f"the config does not set train.{name}; include a packaged one, such as demo.gin"
            ) from None


def _find(name: str, above: pathlib.Path | None = None) -> pathlib.Path:
    """Returns the config file at the path `name`, or else the packaged config of that name.

    `demo.gin` and `configs/demo.gin` both name a packaged config, from any working directory.

    Raises:
      InputError: there is neither; the message lists the packaged configs, and the file `above` that includes it.
    """
    configs = packaged("configs")
    for path in (pathlib.Path(name).absolute(), configs / name.removeprefix("configs/")):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.name for path in configs.glob("*.gin")))
    asked = f", which {above} includes" if above else ""
    raise InputError(f"no config {name}{asked}; name a gin file or one of {known}")


def _parse(path: pathlib.Path, above: tuple[pathlib.Path, ...] = ()) -> None:
    """Parses a config, included by those `above`, and in place of each `include` the file that it names.

    gin's own includes also search Python packages, and fail if there is a folder of that name that is not a package,
    such as configs/. Raises InputError as `_find`, and if a file includes itself.
    """
    import gin

    if path in above:
        raise InputError(f"the config {path} includes itself")
    text, parsed = path.read_text(encoding="utf-8"), 0

    def parse(end: int) -> None:
        """Parses the text from the last include to `end`, with the original line numbers for gin's messages."""
        file = io.StringIO("\n" * text.count("\n", 0, parsed) + text[parsed:end])
        file.name = str(path)
        gin.parse_config(file)

    for include in _INCLUDE.finditer(text):
        parse(include.start())
        _parse(_find(include["path"], path), (*above, path))
        parsed = include.end()
    parse(len(text))


def _is_reference(value: Any) -> bool:
    import gin

    return isinstance(value, gin.config.ConfigurableReference)


@functools.cache
def _register_check() -> None:
    """Registers `_checked` once: gin keeps its hooks for the life of the process."""
    import gin

    gin.config.register_finalize_hook(_checked)


def _checked(config: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Returns replacements of bindings whose references lack the parentheses of a call, such as `@adamw`.

    References are not changed if their parameter is a function.

    Raises:
      InputError: a value has another type than its parameter; the message has the first such binding.
    """
    import gin

    called = {}
    for (scope, selector), bindings in config.items():
        hints, configurable = typing.get_type_hints(gin.get_configurable(selector)), selector.split(".")[-1]
        for name, value in bindings.items():
            if name not in hints:
                continue
            hint, made = hints[name], f"{configurable}.{name}" in _MADE
            if isinstance(value, list | tuple) and any(map(_is_reference, value)):
                fits, value = True, tuple(map(_call, value)) if made else value
            elif _is_reference(value):
                if value.evaluate or made or misfit(value.scoped_configurable_fn, hint):
                    value = _call(value)
                fits = not value.evaluate or _may_make(value, hint)
            else:
                fits = not misfit(value, hint)
            if not fits:
                kind = getattr(hint, "__name__", str(hint))
                raise InputError(f"the config binds {configurable}.{name} to {value!r}, which is no {kind}")
            called[f"{scope}/{selector}.{name}".removeprefix("/")] = value
    return called


def _call(value: Any) -> Any:
    """Returns a reference as one that gin calls, as with parentheses in a config; other values do not change."""
    import gin

    return gin.config.ConfigurableReference(value.scoped_selector, True) if _is_reference(value) else value


def _may_make(reference: Any, hint: Any) -> bool:
    """Returns whether calling a reference can give a value of the type `hint`; of functions, this is not known."""
    from beartype.door import is_subhint

    made = reference.configurable.wrapped
    try:
        return not isinstance(made, type) or is_subhint(made, hint)
    except TypeError:  # a protocol with attributes cannot be compared with a class, only with instances
        return True
