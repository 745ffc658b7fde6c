"""Training that starts from pretrained weights (`train.init_from`)."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from inputs import PAPER
from line import SIZE, Line
from weights import FORMATS, random_arrays, write_weights

from spectrodiff.config import TokenizerConfig
from spectrodiff.diffusion.objective import V
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import EvenLogSNR, LogNormal
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig, SamplingConfig
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.pretrained.native import shapes_of, write
from spectrodiff.training import loop
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.vocoder import VocoderTask
from spectrodiff.vocoder.generator import GeneratorConfig

CONFIG = SpectrogramConfig(TokenizerConfig(1, "slakh", PAPER.model.max_tokens), PAPER.model)
ARRAYS = random_arrays(CONFIG)


def train(task, workdir, steps, **options):
    loop.train(workdir, task=task, optimizer=adamw(0.1), steps=steps, **options)


def test_new_run_loads_init_from_and_a_resumed_run_does_not(tmp_path):
    task = Line()
    train(task, tmp_path / "run", 0, init_from="piano")
    np.testing.assert_array_equal(task.saved[0], np.full((SIZE, SIZE), 7.0))
    train(task, tmp_path / "run", 3, init_from="piano")
    train(task, tmp_path / "run", 4, init_from="gone")
    assert task.loaded == ["piano"]
    assert not (tmp_path / "run" / "report.md").exists()  # there is no evaluator to report on
    assert np.all(task.saved[2] < task.saved[1])
    assert np.all(task.saved[1] < task.saved[0])


def test_weights_are_random_without_init_from(tmp_path):
    task = Line()
    train(task, tmp_path / "run", 0)
    assert task.loaded == []
    assert len(np.unique(task.saved[0])) == SIZE * SIZE


@pytest.mark.parametrize("kind", FORMATS)
def test_every_weight_format_can_be_loaded(tmp_path, kind):
    """The model has the config of the task, which may differ in dropout."""
    write_weights(tmp_path / kind, kind, CONFIG, ARRAYS)
    ours = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dropout=0.3))
    model = SpectrogramTask(config=ours).load(str(tmp_path / kind))
    assert model.decoder.rate == 0.3
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        np.testing.assert_array_equal(leaf[...], ARRAYS[".".join(map(str, path))])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(nnx.state(model)))


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("model", {"width": 64}, r"\bwidth is 32, .*64"),
        ("model", {"heads": 4, "head_dim": 8}, r"\bhead_dim is 16, .*8"),
        ("model", {"decoder_layers": 2}, r"\bdecoder_layers is 1, .*2"),
        ("model", {"event_times": True}, r"\bevent_times is False, .*True"),
        ("tokenizer", {"velocity_bins": 32}, r"\bvelocity_bins is 1, .*32"),
        ("decoder", {"std": 0.5}, r"\bstd is 1.0, .*0.5"),
        ("decoder", {"process": Process(V())}, r"\bprocess.objective.kind is 'eps', .*'v'"),
    ],
)
def test_weights_with_another_config_are_refused(tmp_path, part, options, message):
    write_weights(tmp_path / "weights", "diffusers", CONFIG, ARRAYS)
    ours = dataclasses.replace(CONFIG, **{part: dataclasses.replace(getattr(CONFIG, part), **options)})
    with pytest.raises(InputError, match=rf"weights: .*{message}$"):
        SpectrogramTask(config=ours).load(str(tmp_path / "weights"))


def test_weights_of_another_decoder_are_refused(tmp_path):
    write_weights(tmp_path / "weights", "spectrodiff", CONFIG, ARRAYS)
    ours = dataclasses.replace(CONFIG, decoder=AutoregressiveConfig())
    with pytest.raises(InputError, match=r"'diffusion'.*'autoregressive'$"):
        SpectrogramTask(config=ours).load(str(tmp_path / "weights"))


def test_training_and_sampling_settings_may_differ(tmp_path):
    """Noise levels of training, schedule, sampling options and condition dropout do not change what weights mean."""
    write_weights(tmp_path / "weights", "spectrodiff", CONFIG, ARRAYS)
    process = Process(levels=LogNormal(), schedule=EvenLogSNR())
    decoder = DiffusionConfig(process=process, condition_drop=0.0, sampling=SamplingConfig(steps=3))
    model = SpectrogramTask(config=dataclasses.replace(CONFIG, decoder=decoder)).load(str(tmp_path / "weights"))
    assert model.decoder.config == decoder
    np.testing.assert_array_equal(model.decoder.out.kernel[...], ARRAYS["decoder.out.kernel"])


def test_parameters_with_wrong_shapes_are_named(tmp_path):
    wrong = {**ARRAYS, "decoder.out.kernel": ARRAYS["decoder.out.kernel"][:-1]}
    write_weights(tmp_path / "weights", "spectrodiff", CONFIG, wrong)
    with pytest.raises(InputError, match=r"decoder\.out\.kernel .*\(31, 128\).*\(32, 128\)$"):
        SpectrogramTask(config=CONFIG).load(str(tmp_path / "weights"))


def test_vocoder_loads_weights_of_the_same_config_only(tmp_path):
    config = GeneratorConfig(channels=16)
    arrays = {name: np.full(shape, 0.5, np.float32) for name, shape in shapes_of(MELGAN, config).items()}
    write(tmp_path, MELGAN, arrays, config, {})
    loaded = VocoderTask(config=config).load(str(tmp_path))
    assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(nnx.state(loaded)))
    with pytest.raises(InputError, match=r"vocoder is GeneratorConfig\(channels=16"):
        VocoderTask(config=GeneratorConfig(channels=32)).load(str(tmp_path))
    with pytest.raises(InputError, match=r"vocoder\.json "):
        VocoderTask(config=config).load("demo_student")
