"""Evaluators of the train loop, on very small networks."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS, PAPER, windows_of
from line import Line

from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.objective import V
from spectrodiff.diffusion.process import Process
from spectrodiff.diffusion.schedule import UniformTime, logsnr_at
from spectrodiff.errors import InputError
from spectrodiff.models.autoregressive_decoder import AutoregressiveConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.training import heldout, loop
from spectrodiff.training import state as states
from spectrodiff.training.evaluators import (
    CropBaseline,
    CropError,
    CropGallery,
    Evaluator,
    Every,
    Findings,
    Gallery,
    Guesses,
    HeldoutLoss,
    LossByTime,
    MelError,
)
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.vocoder import VocoderTask

AUTOREGRESSIVE = dataclasses.replace(OURS, decoder=AutoregressiveConfig(mean=-0.3, std=0.375))


@pytest.fixture(scope="module")
def task(corpus):
    return SpectrogramTask(Mixture(str(corpus)), OURS, heldout_windows=2)


@pytest.mark.parametrize("evaluator", [Guesses(), MelError(), HeldoutLoss(), LossByTime(), Gallery()])
def test_evaluators_of_windows_refuse_vocoders(evaluator):
    with pytest.raises(InputError, match=rf"^{type(evaluator).__name__} .*\bCropError$"):
        evaluator.check(VocoderTask())


@pytest.mark.parametrize("evaluator", [CropBaseline(), CropError(), CropGallery()])
def test_evaluators_of_crops_refuse_spectrogram_models(task, evaluator):
    with pytest.raises(InputError, match=rf"^{type(evaluator).__name__} .*\bMelError$"):
        evaluator.check(task)


@pytest.fixture(scope="module")
def weights(our_model):
    return states.split(our_model)


def with_config(task, config):
    """A copy of the task with another model config and the same held-out windows."""
    return with_windows(dataclasses.replace(task, config=config), task.heldout)


def with_windows(task, windows):
    task.__dict__["heldout"] = windows
    return task


@pytest.fixture(scope="module")
def autoregressive(task):
    other = with_config(task, AUTOREGRESSIVE)
    return other, states.split(other.build(nnx.Rngs(0)))


def test_guesses_are_baselines_evaluated_before_training(task, weights):
    found = Guesses()(task, weights)
    assert Guesses().every is None
    assert found == Findings(heldout.guesses(task.heldout))
    assert found.figures.keys() == {"mean_mel", "wrong_window", "context_mean"}
    assert min(found.figures.values()) > 0


def test_mel_error_compares_sampled_with_true_mels(task, weights):
    decoder = OURS.decoder.sampled(steps=2, guidance=1.0)
    sampled = heldout.sample_windows(weights, decoder, task.heldout)
    found = MelError(sampling={"steps": 2, "guidance": 1.0})(task, weights)
    target, mask = task.heldout["target"], task.heldout["target_mask"]
    assert found.figures == {
        "heldout_mel_l1": heldout.mel_l1(sampled, target, mask),
        "heldout_roughness": heldout.roughness(sampled, mask) / heldout.roughness(target, mask),
    }
    assert not found.pictures
    assert not found.sounds


def test_sampling_options_default_to_the_config(task, weights):
    own = dataclasses.replace(OURS, decoder=OURS.decoder.sampled(steps=2, guidance=1.0))
    as_said = MelError(sampling={"steps": 2, "guidance": 1.0})(task, weights)
    assert MelError()(with_config(task, own), weights) == as_said
    assert MelError(sampling={"steps": 1, "guidance": 1.0})(task, weights) != as_said
    with pytest.raises(InputError, match=r"diffusion decoder .*dither"):
        MelError(sampling={"dither": 0.1}).check(task)


def test_gallery_has_true_and_sampled_mels_and_audio(task, weights):
    own = with_config(task, dataclasses.replace(OURS, decoder=OURS.decoder.sampled(steps=2, guidance=1.0)))
    found = Gallery(windows=2)(own, weights)
    frames = task.heldout["target_mask"].sum(1)
    assert found.figures == {}
    assert {name: picture.shape for name, picture in found.pictures.items()} == {
        f"heldout_mel/{i}": (128, 2 * count + 4, 3) for i, count in enumerate(frames)
    }
    assert {name: len(sound) for name, sound in found.sounds.items()} == {
        f"heldout_audio/{i}_{kind}": 320 * count for i, count in enumerate(frames) for kind in ("true", "sampled")
    }
    assert len(Gallery(windows=1)(own, weights).pictures) == 1


# ---- the loss by time


@pytest.fixture(scope="module")
def v_task():
    """A task whose network predicts v, for which the loss depends most on time, with windows of three datasets."""
    rng = np.random.default_rng(0)
    tokens = windows_of(NoteTokenizer(PAPER.tokenizer), 512)[:, :128]
    target, context = (np.tanh(rng.normal(-0.3, 0.4, (3, 256, 128))).astype(np.float32) for _ in range(2))
    frames, before = np.array([[256], [100], [256]]), np.array([[256], [256], [0]])
    masks = {"target_mask": np.arange(256) < frames, "context_mask": np.arange(256) < before}
    windows = {"tokens": tokens, "target": target, "context": context, **masks, "dataset": np.arange(3)}
    config = dataclasses.replace(PAPER, decoder=DiffusionConfig(process=Process(V()), mean=-0.2, std=0.5))
    return with_windows(SpectrogramTask(Mixture(weights=("a", "b", "c")), config), windows)


def loss_by_time(task, modify=lambda model: None):
    model = task.build(nnx.Rngs(0))
    modify(model)
    return LossByTime()(task, states.split(model)).figures


def test_loss_by_time_of_zero_outputs_equals_theory(v_task):
    """It is the weighted mean square of v = alpha eps - sigma x0; its sampling error is about 0.8 %."""

    def zero_outputs(model):
        model.decoder.out.kernel[...] = jnp.zeros_like(model.decoder.out.kernel[...])

    golden, windows = (np.sqrt(5) - 1) / 2, v_task.heldout
    time = (jnp.arange(4) + jnp.arange(3)[:, None] * golden % 1) / 4
    snr = np.exp(np.asarray(logsnr_at(time)))
    pairs = zip(windows["target"], windows["target_mask"], strict=True)
    square = np.array([np.square((x0[mask] + 0.2) / 0.5).mean() for x0, mask in pairs])
    each = np.minimum(snr, 5) / (snr + 1) * (snr + square[:, None]) / (snr + 1)
    bands = {f"heldout_loss_band/{band}": each[:, band].mean() for band in range(4)}
    of_datasets = {f"heldout_loss/{name}": each[i].mean() for i, name in enumerate("abc")}
    expected = {"heldout_loss": each.mean(), **of_datasets, **bands}
    assert loss_by_time(v_task, zero_outputs) == pytest.approx(expected, rel=0.04)


def test_loss_by_time_ignores_dropout_and_training_levels(v_task):
    model = dataclasses.replace(PAPER.model, dropout=0.9)
    process = dataclasses.replace(v_task.config.decoder.process, levels=UniformTime(0.1))
    decoder = dataclasses.replace(v_task.config.decoder, process=process, condition_drop=0.999)
    expected = loss_by_time(v_task)
    assert loss_by_time(with_config(v_task, dataclasses.replace(PAPER, model=model, decoder=decoder))) == expected
    windows = {**v_task.heldout, "tokens": v_task.heldout["tokens"][::-1]}
    other = loss_by_time(with_windows(dataclasses.replace(v_task), windows))
    assert other != pytest.approx(expected)  # the loss depends on the notes


def test_loss_by_time_refuses_autoregressive_decoders(autoregressive):
    with pytest.raises(InputError) as error:
        LossByTime().check(autoregressive[0])
    assert "HeldoutLoss" in str(error.value)
    assert "\n" not in str(error.value)


# ---- any decoder


def test_heldout_loss_is_deterministic_for_any_decoder(task, weights, autoregressive):
    for given in ((task, weights), autoregressive):
        found = HeldoutLoss()(*given)
        assert found == HeldoutLoss()(*given)
        assert found.figures.keys() == {"heldout_loss"}
        assert found.figures["heldout_loss"] > 0


def test_heldout_loss_of_zero_outputs_is_the_mean_square(task):
    """The mean square is that of the normalized target of an autoregressive decoder."""
    config = dataclasses.replace(
        AUTOREGRESSIVE, model=dataclasses.replace(OURS.model, note_roll=False, continuation=False)
    )
    other = with_config(task, config)
    model = other.build(nnx.Rngs(0))
    model.decoder.out.kernel[...] = jnp.zeros_like(model.decoder.out.kernel[...])
    x0 = (task.heldout["target"] + 0.3) / 0.375
    expected = np.mean([np.square(mel[mask]).mean() for mel, mask in zip(x0, task.heldout["target_mask"], strict=True)])
    found = HeldoutLoss()(other, states.split(model))
    assert found.figures["heldout_loss"] == pytest.approx(expected, rel=1e-4)


def test_mel_error_samples_autoregressive_decoders(autoregressive):
    figures = MelError()(*autoregressive).figures
    assert figures.keys() == {"heldout_mel_l1", "heldout_roughness"}
    assert np.isfinite([*figures.values()]).all()


# ---- in the train loop


@dataclasses.dataclass(frozen=True)
class LargestWeight(Every):
    def __call__(self, task, weights):
        return Findings({"largest": float(abs(nnx.merge(*weights).kernel[...]).max())})


@dataclasses.dataclass(frozen=True)
class BeforeTraining:
    every = None

    def __call__(self, task, weights):
        return Findings({"before": 1.0})


def test_custom_evaluators_run_at_their_own_intervals(tmp_path):
    """Each runs at multiples of `every`, and after the last step."""
    evaluators = BeforeTraining(), LargestWeight(every=2), LargestWeight(every=3)
    assert all(isinstance(evaluator, Evaluator) for evaluator in evaluators)
    loop.train(tmp_path, task=Line(), optimizer=adamw(0.1), steps=7, evaluators=evaluators)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "before" in row] == [0]
    assert [row["step"] for row in log if "largest" in row] == [2, 3, 4, 6, 7]


@pytest.mark.parametrize("kind", [MelError, HeldoutLoss, LossByTime, Gallery, LargestWeight])
def test_zero_interval_raises_input_error(kind):
    with pytest.raises(InputError, match=rf"^{kind.__name__}\.every is 0\b"):
        kind(every=0)
