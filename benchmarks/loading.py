"""Time and peak memory of loading weights of the paper's size from each format.

python benchmarks/loading.py [--size base] [--formats t5x spectrodiff] [--folder FOLDER]

Writes random weights, then loads them in a process of its own. The peak is the greatest resident set during the load
(VmHWM: anonymous memory and pages of mapped files alike) less the resident set just before it, when everything is
imported and the demo weights have been loaded once, over the bytes of the parameters. Linux only.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
from flax import nnx

from spectrodiff.commands.weights import SIZES
from spectrodiff.config import ModelConfig, TokenizerConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint

ROOT = pathlib.Path(__file__).parent.parent
FORMATS = ("spectrodiff", "diffusers", "t5x", "t5x_inline")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--folder", help="where the weights are written for a while (default: a temporary one)")
    parser.add_argument("--measure", metavar="PATH", help="load just this checkpoint, in this process")
    options = parser.parse_args()
    if options.measure:
        print("{:.1f} s, peak {:.2f} x {:.0f} MB".format(*measure(options.measure)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind in options.formats:
            path = pathlib.Path(folder, kind)
            write(path, kind, options.size)
            measured = subprocess.run(
                [sys.executable, __file__, "--measure", path], check=True, stdout=subprocess.PIPE, text=True
            )
            print(f"{kind:>12}  {measured.stdout.strip()}", flush=True)


def write(path: pathlib.Path, kind: str, size: str) -> None:
    """Writes random weights of the given format and size to `path`."""
    sys.path.insert(0, str(ROOT / "tests"))  # for the writers of other formats
    from weights import random_arrays, write_weights

    width, heads, head_dim, mlp_width, layers = SIZES[size]
    stacks = dict.fromkeys(("note_layers", "context_layers", "decoder_layers"), layers)
    model = ModelConfig(width=width, heads=heads, head_dim=head_dim, mlp_width=mlp_width, **stacks)
    config = SpectrogramConfig(TokenizerConfig(program_map="slakh"), model)
    write_weights(path, kind, config, random_arrays(config))


def measure(path: str) -> tuple[float, float, float]:
    """Returns the seconds to load weights, peak memory divided by the parameters' size, and that size in MB."""
    import tensorstore  # noqa: F401 (imported on first use, which should not be measured)

    open_checkpoint(find_checkpoint("demo")).build()
    before = resident("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    start = time.perf_counter()
    model = jax.block_until_ready(open_checkpoint(path).build())
    seconds = time.perf_counter() - start
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    return seconds, (resident("VmHWM") - before) / size, size / 1e6


def resident(name: str) -> int:
    """Returns a size of this process in bytes, by its name in /proc/self/status."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()
