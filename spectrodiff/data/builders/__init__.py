"""Readers of corpora as their authors distribute them, and the preparation of datasets from them."""

import dataclasses
import importlib
from typing import Any

from spectrodiff.data.recordings import Corpus
from spectrodiff.errors import InputError

# The module of this package and the class in it that read each corpus; imported when needed.
CORPORA = {
    "maestro": ("maestro", "Maestro"),
    "slakh": ("slakh", "Slakh"),
    "cerberus4": ("slakh", "Cerberus4"),
    "guitarset": ("guitarset", "GuitarSet"),
    "musicnet": ("musicnet", "MusicNet"),
    "urmp": ("urmp", "Urmp"),
    "groove": ("groove", "Groove"),
    "folder": ("folder", "Folder"),
    "rendered": ("rendered.corpus", "RenderedCorpus"),
}


def corpus(name: str, /, **options: Any) -> Corpus:
    """Returns the corpus of a name; `options` are the fields of its class, such as Slakh's `submixes`.

    Raises:
      InputError: there is no such corpus, it has no such option, or an option has a value that cannot be used.
    """
    if name not in CORPORA:
        raise InputError(f"there is no corpus {name!r}; choose one of {', '.join(CORPORA)}")
    module, kind = CORPORA[name]
    kind = getattr(importlib.import_module(f"{__name__}.{module}"), kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return kind(**options)
