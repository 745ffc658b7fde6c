"""The recipe of a rendered corpus: every parameter, kept beside its pieces so that more of the same can be made."""

import dataclasses
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Mapping

from spectrodiff.data.builders.rendered import sources
from spectrodiff.data.soundfont import GAIN, SOUNDFONT, TAIL, require_fluidsynth
from spectrodiff.errors import InputError
from spectrodiff.files import write_json

PACKAGES = ("note-seq", "numpy", "scipy", "soundfile", "pyfluidsynth", "music21")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that determines the pieces of a rendered corpus.

    `weights` are the probabilities of the kinds of sources (`SOURCES`); etudes are shorter than other pieces, so that
    the default gives them about a third of the hours. `programs` is "midi_class", the first program of each family of
    8, or "family", any program of it. Longer pieces are cut to an excerpt of `min_seconds` to `max_seconds`. The other
    fields are those of `soundfont.play`.
    """

    seed: int = 0
    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"etude": 0.46, "band": 0.26, "game": 0.14, "score": 0.14}
    )
    programs: str = "midi_class"
    soundfont: str = SOUNDFONT
    gain: float = GAIN
    reverb: bool = False
    chorus: bool = False
    tail: float = TAIL
    min_seconds: float = 45.0
    max_seconds: float = 90.0


def check_recipe(folder: pathlib.Path, recipe: Recipe) -> None:
    """Raises InputError if `folder` holds pieces of another recipe."""
    path = folder / "recipe.json"
    if path.exists():
        found = json.loads(path.read_text())["recipe"]
        for name, value in dataclasses.asdict(recipe).items():
            if found.get(name) != value:
                raise InputError(
                    f"{folder} was rendered with {name} {found.get(name)}, not {value}: name another --data_dir"
                )


def check_sources(folder: pathlib.Path, recipe: Recipe) -> None:
    """Writes `folder/recipe.json`, or checks that the one there names the same SoundFont and number of source pieces.

    With others, the same piece numbers would be other pieces.

    Raises:
      InputError: a program, package or SoundFont is missing, or differs from that of earlier pieces.
    """
    require_fluidsynth(recipe.soundfont)
    installed = {
        "soundfont_sha256": hashlib.sha256(pathlib.Path(recipe.soundfont).read_bytes()).hexdigest(),
        "pieces_to_draw_from": {kind: len(sources.SOURCES[kind].names()) for kind in recipe.weights},
    }
    path = folder / "recipe.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name, value in installed.items():
            if found.get(name) != value:
                raise InputError(
                    f"{folder} was rendered with {name} {found.get(name)}, and here that is {value}: "
                    "install the same packages again, or name another --data_dir"
                )
        return
    write_json(
        path,
        {
            "recipe": dataclasses.asdict(recipe),
            "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
            "licences": {kind: sources.SOURCES[kind].licence for kind in recipe.weights},
            **installed,
        },
    )
