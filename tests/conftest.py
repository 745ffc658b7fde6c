"""Shape annotations are checked while tests run; compiled programs are kept between runs."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from jaxtyping import install_import_hook

install_import_hook("spectrodiff", "beartype.beartype")

import jax

_CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
import pytest
from flax import nnx
from inputs import OURS, PAPER, make_corpus

from spectrodiff.models.spectrogram_model import SpectrogramModel


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder with a prepared corpus of three short pieces."""
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def paper_model():
    """The paper's network, as small as it goes."""
    return SpectrogramModel(PAPER, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def our_model():
    """The same with all our options."""
    return SpectrogramModel(OURS, rngs=nnx.Rngs(0))
