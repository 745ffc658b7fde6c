"""Reads damaged MIDI files: `python tests/midi_fuzz.py [COUNT [SEED]]` tells how that went, and fails with a traceback
where another error than InputError comes out.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np
from midi_cases import CASES

from spectrodiff.errors import InputError
from spectrodiff.notes.midi import read_midi

COUNT, SEED = 10_000, 0  # of the run that the documentation reports; continuous integration reads fewer
EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def damaged(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """One of the files with bits flipped, a part cut out, or a part of another spliced in; often several of these."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 3)):
        at, to = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        kind = rng.integers(8)
        if kind < 5:
            for place in rng.integers(0, max(1, min(len(data), 10 ** rng.integers(1, 5))), rng.integers(1, 4)):
                if place < len(data):
                    data[place] ^= 1 << rng.integers(8)
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            del data[at : min(to, at + rng.integers(1, 200))]
        else:
            other = files[rng.integers(len(files))]
            start = rng.integers(len(other))
            data[at:at] = other[start : start + rng.integers(1, 2000)]
    return bytes(data)


def main(count: int = COUNT, seed: int = SEED) -> None:
    rng = np.random.default_rng(seed)
    files = [path.read_bytes() for path in sorted(EXAMPLES.glob("*.mid"))]
    files = files * (len(CASES) // len(files)) + [odd for odd, _ in CASES.values()]  # as often long as odd
    read, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "damaged.mid")
        for _ in range(count):
            path.write_bytes(damaged(rng, files))
            start = time.perf_counter()
            try:
                notes = read_midi(path, channel_volume=True, tell=lambda line: None)
                assert len(notes)
                assert (notes.end > notes.start).all()
                assert notes.total_time == notes.end.max()
                assert set(notes.velocity.tolist()) <= set(range(1, 128))
                read += 1
            except InputError as error:
                message = str(error)
                assert not any(word in message for word in ("\n", "Error", "<class")), message
            slowest = max(slowest, time.perf_counter() - start)
    # Not getrusage's figure, which a process that was just started inherits from the one that started it.
    peak = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20
    print(
        f"{count} files, seed {seed}: {read} read, {count - read} refused, slowest {slowest:.3f} s, peak {peak:.3f} GiB"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
