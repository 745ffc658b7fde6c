"""Packs what training exported as weights of the package: in float16, with the card of its run.

python recipes/pack_weights.py runs/melgan_gan/export spectrodiff/pretrained/weights/new

After that `--vocoder new` finds it, or `--checkpoint new` a spectrogram model. Write a README.md beside it:
licence, data, training, held-out figures, limits.
"""

import argparse
import math
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import KINDS
from spectrodiff.pretrained.native import build, read, save, shapes_of

LARGEST = 15e6  # bytes of a network


def pack(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Writes the networks in the folder `source` to `destination` in float16.

    Raises:
      InputError: there is none, one cannot be read or written, or takes more than 15 MB.
    """
    kinds = [kind for kind in KINDS.values() if kind.exists_in(source)]
    if not kinds:
        raise InputError(f"{source} has no weights that training exported; name the export folder of a run")
    found = {kind: read(source, kind) for kind in kinds}
    for kind, (config, _, _) in found.items():
        size = 2 * sum(math.prod(shape) for shape in shapes_of(kind, config).values())
        if size > LARGEST:
            raise InputError(f"the {kind.title} takes {size / 1e6:.1f} MB; the package has room for {LARGEST / 1e6:g}")
    for kind, (config, arrays, card) in found.items():
        save(destination, kind, build(kind, config, arrays, str(source)), config, card, "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("destination", type=pathlib.Path)
    options = parser.parse_args()
    try:
        pack(options.source, options.destination)
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
