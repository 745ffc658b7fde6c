"""The bindings of other people's gin files, as values: what they import and refer to is neither looked up nor run."""

import pathlib
import tokenize
from typing import Any

from gin.config_parser import BindingStatement, ConfigParser, ParserDelegate

from spectrodiff.errors import InputError, reason


class _Reference(str):
    """A reference or a macro, as it is written."""

    __repr__ = str.__str__


class _Delegate(ParserDelegate):
    def configurable_reference(self, name, evaluate):
        return _Reference(f"@{name}()" if evaluate else f"@{name}")

    def macro(self, name):
        return _Reference(f"%{name}")


def read_bindings(path: pathlib.Path) -> dict[str, Any]:
    """Values by `Configurable.parameter`, modules left off and macros resolved; those of scopes are passed over.

    Raises:
      InputError: the file is missing or no gin.
    """
    try:
        statements = list(ConfigParser(path.read_text(), _Delegate()))
    except (OSError, ValueError, SyntaxError, RecursionError, StopIteration, tokenize.TokenError) as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    found = [statement for statement in statements if isinstance(statement, BindingStatement) and not statement.scope]
    macros = {f"%{binding.selector}": binding.value for binding in found if not binding.arg_name}

    def resolved(value):
        for _ in macros:  # of macros there may be a chain, or a circle
            value = macros.get(value, value) if isinstance(value, _Reference) else value
        return value

    return {
        f"{binding.selector.split('.')[-1]}.{binding.arg_name}": resolved(binding.value)
        for binding in found
        if binding.arg_name
    }
