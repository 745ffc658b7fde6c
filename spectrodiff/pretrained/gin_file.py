"""Reads the bindings of foreign gin files as plain values; what they import or refer to is not loaded."""

import pathlib
import tokenize
from typing import Any

from gin.config_parser import BindingStatement, ConfigParser, ParserDelegate

from spectrodiff.errors import InputError, reason


class _Reference(str):
    """A reference or macro, as text."""

    __repr__ = str.__str__


class _Delegate(ParserDelegate):
    def configurable_reference(self, name, evaluate):
        return _Reference(f"@{name}()" if evaluate else f"@{name}")

    def macro(self, name):
        return _Reference(f"%{name}")


def read_bindings(path: pathlib.Path) -> dict[str, Any]:
    """Returns the values of bindings by `Configurable.parameter`, without module names and with macros resolved.

    Bindings in scopes are ignored.

    Raises:
      InputError: the file is missing or is not gin.
    """
    try:
        statements = list(ConfigParser(path.read_text(), _Delegate()))
    except (OSError, ValueError, SyntaxError, RecursionError, StopIteration, tokenize.TokenError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    found = [statement for statement in statements if isinstance(statement, BindingStatement) and not statement.scope]
    macros = {f"%{binding.selector}": binding.value for binding in found if not binding.arg_name}

    def resolved(value):
        for _ in macros:  # macros may refer to macros, also in cycles
            value = macros.get(value, value) if isinstance(value, _Reference) else value
        return value

    return {
        f"{binding.selector.split('.')[-1]}.{binding.arg_name}": resolved(binding.value)
        for binding in found
        if binding.arg_name
    }
