"""Shape annotations are checked while tests run; compiled programs are kept between runs."""

# ruff: noqa: E402 (spectrodiff is imported after the hook that checks it)

import functools
import gc
import importlib.util
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Processes that tests start inherit these. All compiled programs are kept, also those of a few milliseconds: there are
# hundreds of them.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Nearly all programs run once, on little data, and would take longer to compile than to run. Without optimised machine
# code and (below) without the newer of XLA's two ways to make it, one that samples a small network is compiled in 0.4 s
# instead of 2.4.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

from jaxtyping import install_import_hook

install_import_hook("spectrodiff", "beartype.beartype")

from spectrodiff.commands.common import set_xla_flags

if not importlib.util.find_spec("tensorflow"):  # the XLA that TensorFlow brings may not know these
    set_xla_flags("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")

import gin
import hypothesis
import pytest
from flax import nnx
from inputs import OURS, PAPER, make_corpus

import spectrodiff.synthesizer
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import save
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.training import heldout
from spectrodiff.vocoder.griffin_lim import GriffinLim

# No deadline: a first example may wait for imports, and machines may be busy. In CI the same examples on every run: a
# rare one should fail where somebody is looking.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True)
def no_config_is_left():
    """gin's bindings are the process's: what a test's own commands bound would reach the tests after it."""
    yield
    gin.clear_config()


@pytest.fixture(scope="module", autouse=True)
def survivors_are_not_garbage():
    """Excludes what earlier modules left from garbage collection, which would go through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick_griffin_lim():
    """Where no vocoder is asked for, Griffin-Lim plays with a single iteration: unoptimised, it takes long."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (heldout, spectrodiff.synthesizer):
            patch.setattr(module, "GriffinLim", functools.partial(GriffinLim, iterations=1, solver_iterations=1))
        yield


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A data_dir with one prepared dataset, of three short pieces."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def paper_model():
    """The paper's network, as small as it goes."""
    return SpectrogramModel(PAPER, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def our_model():
    """The same with all our options."""
    return SpectrogramModel(OURS, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def checkpoint(our_model, tmp_path_factory):
    """A folder with that network, as training exports it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save(folder, SPECTROGRAM, our_model, OURS, {})
    return folder


@pytest.fixture(scope="session")
def synthesizer(checkpoint):
    return Synthesizer.from_pretrained(checkpoint)
