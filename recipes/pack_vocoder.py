"""Packs a vocoder that training exported as weights of the package: in float16, with the card of its run.

python recipes/pack_vocoder.py runs/melgan_gan/export spectrodiff/pretrained/weights/melgan

After that `--vocoder melgan` finds it. Write a README.md beside it: licence, data, training, held-out figures, limits.
"""

import argparse
import math
import pathlib

from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import vocoder_kind
from spectrodiff.pretrained.native import build, read, save, shapes_of

LARGEST = 8e6  # bytes


def pack(source: pathlib.Path, destination: pathlib.Path) -> None:
    """Writes the vocoder in `source` to `destination` in float16.

    Raises:
      InputError: there is none, it cannot be read or written, or it takes more than 8 MB.
    """
    kind = vocoder_kind(source)
    if kind is None:
        raise InputError(f"{source} has no vocoder that training exported; name the export folder of a run")
    config, arrays, card = read(source, kind)
    size = 2 * sum(math.prod(shape) for shape in shapes_of(kind, config).values())
    if size > LARGEST:
        raise InputError(f"{source} takes {size / 1e6:.1f} MB in float16; the package has room for {LARGEST / 1e6:g}")
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
