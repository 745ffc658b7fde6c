"""Moves a rendered corpus to another machine as a small file of its notes, and renders it again there.

`pack` writes notes, names and splits of a prepared dataset into one file, a hundredth of the audio's size. `render`
makes the same dataset of it, on all cores: it needs FluidSynth and a SoundFont, but neither the packages that the music
came from nor a network. A run that is killed continues where it stopped.

python recipes/scores.py pack --data_dir data --dataset rendered --out scores.npz
python recipes/scores.py render --scores scores.npz --data_dir /tmp/data
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import zipfile
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.recordings import Entry, Recording, record_name
from spectrodiff.data.soundfont import GAIN, SOUNDFONT, play, require_fluidsynth
from spectrodiff.errors import InputError, reason
from spectrodiff.files import check_writable, replacing
from spectrodiff.notes.sequence import from_note_sequence


@dataclasses.dataclass(frozen=True)
class Scores:
    """A `Corpus` whose recordings are played as they are read; its "folder" is the file that `pack` wrote."""

    name: str
    soundfont: str
    gain: float
    reverb: bool
    chorus: bool
    homepage = ""
    description = "Music from free packages, played by a General MIDI SoundFont"

    def entries(self, folder: pathlib.Path) -> list[Entry]:
        """Returns all pieces; see `Corpus`. Their sources tell another file from this one by its contents."""
        contents = hashlib.sha256(folder.read_bytes()).hexdigest()
        packed = _packed(str(folder), contents)
        pieces = enumerate(zip(packed["name"].tolist(), packed["split"].tolist(), strict=True))
        return [Entry(name, split, (str(folder), contents, index)) for index, (name, split) in pieces]

    def read(self, entry: Entry) -> Recording:
        """Plays a piece; see `Corpus`."""
        path, contents, index = entry.source
        packed = _packed(path, contents)
        begin, end = packed["ends"][index : index + 2]
        notes = from_note_sequence(packed["notes"][begin:end].tobytes())
        # The length of the recording is that of the piece, release included: nothing is added.
        audio = play(notes, self.soundfont, gain=self.gain, reverb=self.reverb, chorus=self.chorus, tail=0.0)
        return Recording(entry.name, audio, notes)


@functools.lru_cache(maxsize=1)
def _packed(path: str, contents: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a packed file; `contents` is its hash."""
    with np.load(path) as file:
        return dict(file)


def pack(data_dir: str, dataset: str, out: str) -> None:
    """Writes the notes and splits of a prepared dataset, and how it was played, into the file `out`.

    Raises:
      InputError: there is no such dataset, or `out` cannot be written.
    """
    check_writable(out)
    found = open_dataset(data_dir, dataset)
    recipe = dict(found.builder.info.metadata or {}).get("options", {}).get("recipe", {})
    played = {name: recipe.get(name, value) for name, value in (("gain", GAIN), ("reverb", False), ("chorus", False))}
    names, splits, notes = [], [], []
    for split in found.splits:
        for record in tqdm(found[split], f"packing {split}", unit="piece"):
            names.append(record_name(record))
            splits.append(split)
            notes.append(record["notes"])
    with replacing(out) as temporary, temporary.open("wb") as file:
        np.savez_compressed(
            file,
            name=names,
            split=splits,
            notes=np.frombuffer(b"".join(notes), np.uint8),
            ends=np.cumsum([0, *map(len, notes)]),
            played=json.dumps({"name": found.name.split("/")[0], **played}),
        )
    print(f"{out}: {len(names)} pieces, {pathlib.Path(out).stat().st_size / 1e6:.1f} MB", flush=True)


def render(scores: str, data_dir: str, soundfont: str = SOUNDFONT, workers: int | None = None) -> pathlib.Path:
    """Plays packed pieces and makes the dataset of them; returns its folder.

    Raises:
      InputError: `scores` is no packed file; FluidSynth or the SoundFont is missing; or as `preparation.prepare`.
    """
    require_fluidsynth(soundfont)
    try:
        with np.load(scores) as file:
            played = json.loads(str(file["played"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{scores} is no file that `pack` wrote; name one ({reason(error)})") from error
    folder = prepare(Scores(soundfont=soundfont, **played), scores, data_dir, workers=workers)
    print(f"{folder}: done", flush=True)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="write a dataset's notes into one file")
    packing.add_argument("--data_dir", default="data")
    packing.add_argument("--dataset", default="rendered")
    packing.add_argument("--out", required=True, help="the file to write: NAME.npz")
    packing.set_defaults(run=pack)
    rendering = commands.add_parser("render", help="make the dataset of that file")
    rendering.add_argument("--scores", required=True)
    rendering.add_argument("--data_dir", default="data")
    rendering.add_argument("--soundfont", default=SOUNDFONT)
    rendering.add_argument("--workers", type=int, help="processes (default: one per core)")
    rendering.set_defaults(run=render)
    options = vars(parser.parse_args(arguments))
    try:
        options.pop("run")(**options)
    except InputError as error:
        print(f"scores.py: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
