"""Training vocoders on predicted mels: a spectrogram model's samples, paired with the recording of the same frames."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from flax import nnx

from spectrodiff.audio.mel import LOG_CEILING, log_mel_on_host, log_mels
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import decode
from spectrodiff.errors import InputError
from spectrodiff.training.refiner import RefinerTask
from spectrodiff.training.steps import Others
from spectrodiff.vocoder.refiner import RefinerConfig

TINY = RefinerConfig(width=8, layers=1, kernel=3, agreement=0)


@pytest.fixture(scope="module")
def task(corpus, checkpoint):
    return RefinerTask(
        Mixture(str(corpus)), config=TINY, batch_size=2, crop_frames=62, heldout_crops=2, predicted_by=str(checkpoint)
    )


@pytest.fixture(scope="module")
def batches(task):
    batches = task.batches(seed=3)
    yield [next(batches) for _ in range(2)]
    batches.close()


def test_batch_audio_starts_at_the_given_frame_of_its_record(batches, corpus):
    records = open_dataset(corpus, "rendered")["train"]
    for batch in batches:
        assert batch["audio"].shape == (2, (64 + 16) * 320)
        for audio, (_, index), start in zip(batch["audio"], batch["record"], batch["start"], strict=True):
            whole = np.pad(decode(records[int(index)]).audio, (0, 300 * 320))
            np.testing.assert_array_equal(audio, whole[start * 320 :][: len(audio)])


def test_batch_mel_is_sampled_by_the_model(batches):
    """The model is untrained, so its mels are far from the recording's."""
    batch = batches[0]
    assert batch["mel"].shape == (2, 64, 128)
    true = np.asarray(log_mels(batch["audio"]))[:, :64]
    assert np.abs(batch["mel"] - true).mean() > 0.5
    assert np.isfinite(batch["mel"]).all()


def test_batch_mel_and_audio_are_of_the_same_frames(task):
    """A sampler that returns its target gives the mel of the audio, wherever in the window the crop begins."""
    batches = task.batches(seed=3)
    windows, seen = batches._windows, []
    batches._windows = (seen.append(batch) or batch for batch in windows)
    batches._sampler = types.SimpleNamespace(sample_windows=lambda *_: seen[-1]["target"])
    begun = []
    for _ in range(2):
        batch = next(batches)
        begun.append(int((batch["start"] - seen[-1]["start"])[0]))
        true = np.stack([log_mel_on_host(audio) for audio in batch["audio"]])[:, :64]  # computed like the target
        np.testing.assert_allclose(batch["mel"], np.minimum(true, LOG_CEILING), atol=1e-3)
    windows.close()
    assert len({0, *begun}) == 3
    assert not np.allclose(batch["mel"], batch["mel"][0, 0], atol=0.1)  # not silence, which would match any frames


def test_batches_resume_at_the_given_step(task, batches):
    again = task.batches(seed=3, start=2)
    batch = next(again)
    again.close()
    for name, array in batches[1].items():
        np.testing.assert_allclose(batch[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


def test_loss_uses_the_mel_of_the_batch(task, batches):
    refiner = task.build(nnx.Rngs(0))
    loss = jax.jit(lambda batch: task.loss(refiner, batch, jax.random.key(0), Others(lambda: refiner, {}))[0])
    batch = {name: batches[0][name] for name in ("mel", "audio")}
    assert float(loss(batch)) != pytest.approx(float(loss({"audio": batch["audio"]})), rel=1e-3)


def test_crops_longer_than_a_window_raise_input_error(task):
    with pytest.raises(InputError, match=r"\b257 frames.*\b256\b"):
        dataclasses.replace(task, crop_frames=255).batches(0)
