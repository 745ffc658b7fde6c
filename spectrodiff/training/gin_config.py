"""Training configs: gin files are read, checked, and written as they were used."""

import functools
import io
import pathlib
import re
import typing
from collections.abc import Sequence
from typing import Any

import gin
from beartype.door import is_subhint

from spectrodiff.config import misfit
from spectrodiff.errors import InputError
from spectrodiff.files import packaged
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

_INCLUDE = re.compile(r"""^include[ \t]+(['"])(?P<path>.+?)\1[ \t]*(#.*)?$""", re.MULTILINE)
# Parameters whose values are returned by functions, so that `@adamw` means `@adamw()`.
_MADE = ("train.task", "train.optimizer", "train.adaptation", "train.evaluators")


def read_config(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads a training config into gin: files, or packaged configs by name, then bindings.

    It replaces the config that gin had before.

    Raises:
      InputError: there is no such file, or the config is wrong or incomplete; the message has the first error.
    """
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
    return isinstance(value, gin.config.ConfigurableReference)


@functools.cache
def _register_check() -> None:
    """Registers `_checked` once: gin keeps its hooks for the life of the process."""
    gin.config.register_finalize_hook(_checked)


def _checked(config: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    """Returns replacements of bindings whose references lack the parentheses of a call, such as `@adamw`.

    References are not changed if their parameter is a function.

    Raises:
      InputError: a value has another type than its parameter; the message has the first such binding.
    """
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
    return gin.config.ConfigurableReference(value.scoped_selector, True) if _is_reference(value) else value


def _may_make(reference: Any, hint: Any) -> bool:
    """Returns whether calling a reference can give a value of the type `hint`; of functions, this is not known."""
    made = reference.configurable.wrapped
    try:
        return not isinstance(made, type) or is_subhint(made, hint)
    except TypeError:  # a protocol with attributes cannot be compared with a class, only with instances
        return True


def used_config() -> str:
    """Returns all settings that the run uses, as a config, and prints the bindings that are not used."""
    config = gin.operative_config_str()
    used = {known for name in _bound(config) for known in (name, name.rpartition("/")[2])}  # in a scope is used too
    if unused := sorted(_bound(gin.config_str()) - used):
        print(f"of the config nothing uses {', '.join(unused)}", flush=True)
    return config


def _bound(config: str) -> set[str]:
    """Returns the names of a config's bindings."""
    return set(re.findall(r"^([\w./]+\.\w+) =", config, re.MULTILINE))
