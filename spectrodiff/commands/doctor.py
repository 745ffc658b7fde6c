"""`doctor`: says which optional parts are installed, and how to get those that are not."""

import ctypes.util
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import spectrodiff
from spectrodiff.commands.common import compilation_cache
from spectrodiff.errors import reason

# The distributions of each extra of setup.py that adds a feature, and the feature.
EXTRAS = {
    "data": (("array-record", "pyyaml", "tensorflow-datasets"), "preparing and reading datasets"),
    "render": (("music21",), "scores for the dataset `rendered`"),
    "eval": (("mir_eval", "onnxruntime"), "embeddings and scores of `evaluate`"),
    "onnx": (("onnxruntime",), "vocoders and embeddings in ONNX"),
    "hub": (("huggingface_hub",), "weights from hf://owner/name"),
    "app": (("gradio",), "the web page"),
    "tf": (("tensorflow",), "vocoders and embeddings that are SavedModels"),
    "beam": (("apache-beam",), "preparing datasets on a cluster"),
    "completion": (("shtab",), "completion in the shell"),
}
SOUNDFONT = pathlib.Path("/usr/share/sounds/sf3/FluidR3Mono_GM.sf3")
GROOVES = pathlib.Path("/usr/share/mma/lib")
WADS = pathlib.Path("/usr/share/games/doom")


class Part(NamedTuple):
    """A part of an installation: what it is for, what was found of it (None: nothing), and the command that gets it."""

    name: str
    purpose: str
    found: str | None
    remedy: str = ""


def add(commands) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say which optional parts are installed, and how to get the others",
        description="Says which optional parts are installed and, for each that is missing, the command that gets it.",
        examples=["doctor"],
    )
    parser.set_defaults(run=_doctor)


def _doctor(options) -> None:
    print(f"spectrodiff {spectrodiff.__version__}, Python {platform.python_version()}, {platform.platform()}")
    parts = [*extras(), *programs(), *machine()]
    width = max(len(part.name) for part in parts)
    for part in parts:
        print(f"{'ok' if part.found else 'missing':<9}{part.name:<{width + 2}}{part.found or f'for {part.purpose}'}")
        if part.remedy:
            print(f"{'':<9}{'':<{width + 2}}{part.remedy}")
    missing = sum(not part.found for part in parts)
    print(f"optional parts that are missing: {missing}" if missing else "nothing is missing")


def _versions(*distributions: str) -> str | None:
    """Returns the names and versions of distributions, or None unless all are installed."""
    try:
        return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)
    except importlib.metadata.PackageNotFoundError:
        return None


def _part(name: str, purpose: str, found: str | None, remedy: str) -> Part:
    return Part(name, purpose, found, "" if found else remedy)


def extras() -> Iterator[Part]:
    """Yields the extras of the package."""
    for name, (distributions, purpose) in EXTRAS.items():
        yield _part(name, purpose, _versions(*distributions), f'pip install "spectrodiff[{name}]"')


def programs() -> Iterator[Part]:
    """Yields what pip cannot install with its dependencies, and what comes from the system's packages."""
    library = ctypes.util.find_library("fluidsynth")
    get = "brew install fluid-synth" if sys.platform == "darwin" else "sudo apt-get install libfluidsynth3"
    yield _part("FluidSynth", "playing a SoundFont", library, get)
    binding = _versions("pyfluidsynth")
    yield _part("pyfluidsynth", "playing a SoundFont", binding, "pip install --no-deps pyfluidsynth")
    font = str(SOUNDFONT) if SOUNDFONT.is_file() else None
    yield _part("SoundFont", "the dataset `rendered`", font, "sudo apt-get install fluidr3mono-gm-soundfont")
    mma = shutil.which("mma") if GROOVES.is_dir() else None
    yield _part("MMA", "bands in the dataset `rendered`", mma, "sudo apt-get install mma")
    wads = ", ".join(sorted(path.name for path in WADS.glob("*.wad"))) or None
    yield _part("Freedoom", "games' music in the dataset `rendered`", wads, "sudo apt-get install freedoom freedm")
    pitch = _versions("basic-pitch")
    yield _part("basic-pitch", "notes in `evaluate`", pitch, "pip install --no-deps basic-pitch")


def machine() -> Iterator[Part]:
    """Yields the devices that JAX computes on, its cache of compiled programs, and the free disk."""
    yield _devices()
    cache = compilation_cache()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    writable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    yield _part(
        "cache",
        f"compiled programs: {existing} cannot be written",
        str(cache) if writable else None,
        "export JAX_COMPILATION_CACHE_DIR=FOLDER",
    )
    here = pathlib.Path.cwd()
    yield Part("free disk", "", f"{shutil.disk_usage(here).free / 1e9:.0f} GB in {here}")


def _devices() -> Part:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # take no memory from programs that are running
    try:
        import jax

        devices = jax.devices()
    except (ImportError, RuntimeError) as error:
        return Part("JAX", f"everything: {reason(error)}", None, "pip install --upgrade jax")
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    found = f"jax {jax.__version__}, {len(devices)} x {kinds}"
    if devices[0].platform != "cpu":
        return Part("JAX", "", found)
    if pathlib.Path("/dev/nvidiactl").exists():
        return Part("JAX", "", f"{found}; the GPU is not used", 'pip install --upgrade "jax[cuda12]"')
    if pathlib.Path("/dev/accel0").exists():
        return Part("JAX", "", f"{found}; the TPU is not used", 'pip install --upgrade "jax[tpu]"')
    return Part("JAX", "", found)
