"""The gin files in configs/: every binding is used, and the model sizes are the published ones."""

import dataclasses
import pathlib
import re

import gin
import jax
import pytest
from flax import nnx

from spectrodiff.models.layers import Buffer
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.notes.vocabulary import Vocabulary
from spectrodiff.training import adversarial, loop, optimizers, refiner, spectrogram, vocoder  # noqa: F401 (named in configs)

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.gin"))
VOCODERS = ("melgan.gin", "melgan_gan.gin", "melgan_large.gin", "refiner.gin")
SIZES = {"small": (512, 6 * 64, 1024, 8), "base": (768, 12 * 64, 2048, 12)}  # width, heads, MLP, layers


class TrainLoopReachedError(Exception):
    """Raised once the train loop has received everything from its config."""


@pytest.fixture
def parse_config():
    """Parses a config by file name; clears gin before and after the test."""
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    yield lambda name: gin.parse_config_file(str(ROOT / "configs" / name))
    gin.clear_config()


def bindings(text):
    return set(re.findall(r"^([\w./]+\.\w+) =", text, re.MULTILINE))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_binding_is_used(name, parse_config, corpus, monkeypatch, tmp_path):
    parse_config(name)
    written = bindings(gin.config_str())
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    for dataset in gin.query_parameter("Mixture.weights"):
        (data_dir / dataset).symlink_to(corpus / "rendered")
    for binding in written:
        if binding.endswith(".data_dir"):
            gin.bind_parameter(binding, str(data_dir))

    def stop(*args):
        raise TrainLoopReachedError

    monkeypatch.setattr(loop, "Checkpoints", stop)
    with pytest.raises(TrainLoopReachedError):
        loop.train(tmp_path)
    gin.get_bindings("train")["task"].batches(0)
    assert len(written) > 5
    used = bindings(gin.operative_config_str())
    used |= {name.rpartition("/")[2] for name in used}  # bindings without scope also apply within a scope
    assert written - used == set()


def spectrogram_config():
    return gin.get_bindings("SpectrogramTask")["config"]


@pytest.mark.parametrize(("name", "millions"), [("small", 104.0), ("base", 411.7), ("large", 1453.9)])
def test_parameter_counts_equal_the_published_ones(name, millions, parse_config):
    """Position tables are included. Models of one and of two layers give the count of any number of layers."""
    parse_config(f"{name}.gin")
    config = spectrogram_config()
    layers = config.model.note_layers
    assert config.model.context_layers == config.model.decoder_layers == layers

    def count_parameters(layers):
        model = dataclasses.replace(config.model, note_layers=layers, context_layers=layers, decoder_layers=layers)
        resized = dataclasses.replace(config, model=model)
        abstract = nnx.eval_shape(lambda: SpectrogramModel(resized, rngs=nnx.Rngs(0)))
        return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Any(nnx.Param, Buffer))))

    one, two = count_parameters(1), count_parameters(2)
    assert (one + (layers - 1) * (two - one)) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize(("name", "millions"), [("small", 46.2), ("base", 201.4)])
def test_autoregressive_baseline_has_the_published_size(name, millions, parse_config):
    """The expected count is worked out by hand, without context and FiLM: attention matrices (4 per encoder block, 8
    per decoder block), MLPs, norm scales, embeddings, position tables and mel projections.
    """
    parse_config(f"{name}_autoregressive.gin")
    config = spectrogram_config()
    model, published = config.model, SIZES[name]
    assert (model.width, model.heads * model.head_dim, model.mlp_width, model.note_layers) == published
    assert (model.decoder_layers, model.with_context, model.mask_padding) == (model.note_layers, False, False)
    d, inner, mlp, layers = published
    notes = (1536 + 2048) * d + layers * (4 * d * inner + 3 * d * mlp + 2 * d) + d
    decoder = (128 + 256) * d + layers * (8 * d * inner + 3 * d * mlp + 3 * d) + d + d * 128
    abstract = nnx.eval_shape(lambda: SpectrogramModel(config, rngs=nnx.Rngs(0)))
    found = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Any(nnx.Param, Buffer))))
    assert found == notes + decoder == pytest.approx(millions * 1e6, abs=5e4)


def test_default_config_is_base(parse_config):
    gin.clear_config()
    default = SpectrogramConfig()
    parse_config("base.gin")
    assert spectrogram_config().model == default.model
    assert spectrogram_config().decoder == default.decoder


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in VOCODERS])
def test_embedding_table_holds_the_vocabulary(name, parse_config):
    parse_config(name)
    config = spectrogram_config()
    assert config.model.vocabulary_rows >= Vocabulary(config.tokenizer.velocity_bins).end
    assert config.model.max_tokens >= config.tokenizer.max_tokens
