import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from inputs import make_recording, write_dataset

from spectrodiff.audio.mel import log_mels, scale_mel
from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import Recording, decode
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import MELGAN
from spectrodiff.pretrained.native import load
from spectrodiff.training import state as states
from spectrodiff.training.evaluators import CropBaseline, CropError, CropGallery
from spectrodiff.training.heldout import side_by_side
from spectrodiff.training.steps import Others
from spectrodiff.training.vocoder import VocoderTask
from spectrodiff.vocoder.generator import GeneratorConfig, receptive_frames

SMALL = GeneratorConfig(channels=16, dilations=(1,))
NO_OTHERS = Others(lambda: None, {})
CROP, EXTRA = (8 + 2 * receptive_frames(SMALL)) * 320, 16 * 320


@pytest.fixture(scope="module")
def task(corpus):
    return VocoderTask(Mixture(str(corpus)), config=SMALL, batch_size=2, crop_frames=8, heldout_crops=2)


@pytest.fixture
def batches(task):
    iterator = task.batches(seed=0)
    yield iterator
    iterator.close()


@pytest.fixture(scope="module")
def generator(task):
    return task.build(nnx.Rngs(0))


def recordings_of(corpus, split):
    return [decode(record).audio for record in open_dataset(corpus, "rendered")[split]]


def find_crop(crop, recording):
    """The only sample of `recording` at which `crop` begins, or None."""
    starts = range(0, len(recording) - len(crop) + 1, 320)
    found = [start for start in starts if np.array_equal(recording[start : start + len(crop)], crop)]
    return found[0] if len(found) == 1 else None


def test_batches_are_frame_aligned_crops_of_training_recordings(batches, corpus):
    recordings = recordings_of(corpus, "train")
    crops = np.concatenate([next(batches)["audio"] for _ in range(5)])
    assert crops.shape == (10, CROP + EXTRA)
    assert crops.dtype == np.float32
    audible = crops[np.abs(crops).max(axis=1) > 0]
    found = [
        [i for i, recording in enumerate(recordings) if find_crop(crop, recording) is not None] for crop in audible
    ]
    assert all(len(matches) == 1 for matches in found)
    assert {matches for (matches,) in found} == {0, 1}


def test_augmentation_applies_to_the_batches(task, batches):
    loud = dataclasses.replace(task, augmentation=Augmentation(gain_db=(20.0, 20.0))).batches(seed=0)
    peaks = [np.abs(next(stream)["audio"]).max() for stream in (batches, loud)]
    loud.close()
    assert peaks[1] > 3 * peaks[0]


def test_heldout_crops_are_two_seconds_of_validation_audio(task, corpus):
    (recording,) = recordings_of(corpus, "validation")
    assert len(recording) == 7 * 16000
    np.testing.assert_array_equal(task.heldout, [recording[:32000], recording[64000:96000]])


def test_heldout_recordings_need_two_seconds(task, tmp_path):
    for samples in (32000, 31999):
        only = Recording("only", np.full(samples, 0.5, np.float32), make_recording(0).notes)
        write_dataset(tmp_path, f"of{samples}", {"validation": [only]})
        task_of_length = dataclasses.replace(task, mixture=Mixture(str(tmp_path), (f"of{samples}",)))
        if samples == 32000:
            assert task_of_length.heldout.shape == (1, 32000)
        else:
            with pytest.raises(InputError, match=r"\bof31999\b"):
                _ = task_of_length.heldout


def test_crops_shorter_than_the_loss_window_raise_input_error(task):
    assert dataclasses.replace(task, crop_frames=7).crop_frames == 7
    with pytest.raises(InputError, match=r"^crop_frames is 6\b.*\b7 frames"):
        dataclasses.replace(task, crop_frames=6)


def test_loss_is_a_weighted_sum_and_decreases_in_training(task, batches, generator):
    task = dataclasses.replace(task, loss_weights={"log_magnitude": 2.0, "mel": 0.5})
    graph, params, buffers = states.split(generator)
    adam = optax.adam(3e-3)

    @jax.jit
    def step(params, moments, batch):
        def loss(params):
            return task.loss(nnx.merge(graph, params, buffers), batch, jax.random.key(0), NO_OTHERS)

        (value, terms), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = adam.update(gradients, moments)
        return optax.apply_updates(params, updates), moments, value, terms

    batch, moments, values = next(batches), adam.init(params), []
    for _ in range(10):
        params, moments, value, terms = step(params, moments, batch)
        values.append(float(value))
        assert values[-1] == pytest.approx(2.0 * float(terms["log_magnitude"]) + 0.5 * float(terms["mel"]), rel=1e-5)
    assert values[-1] < 0.9 * values[0]


def test_evaluators_report_errors_and_baseline(task, generator):
    weights = states.split(generator)
    figures, silence = (evaluator(task, weights).figures for evaluator in (CropError(), CropBaseline()))
    assert figures.keys() == {"heldout_log_magnitude", "heldout_convergence", "heldout_mel"}
    assert silence["silence_convergence"] == pytest.approx(1.0, abs=0.02)  # silence has no magnitude at all
    assert all(np.isfinite(value) and value > 0 for value in [*figures.values(), *silence.values()])


def test_crop_gallery_has_pictures_and_audio(task, generator):
    figures, pictures, sounds = CropGallery()(task, states.split(generator))
    assert figures == {}
    assert {name: picture.shape for name, picture in pictures.items()} == {
        f"heldout_mel/{i}": (128, 100 + 4 + 100, 3) for i in range(2)
    }
    made = jax.jit(generator)(log_mels(task.heldout))
    for i in range(2):
        np.testing.assert_array_equal(sounds[f"heldout_audio/{i}_true"], task.heldout[i])
        np.testing.assert_allclose(sounds[f"heldout_audio/{i}_generated"], made[i], atol=1e-5)
        again = side_by_side(*(np.asarray(scale_mel(log_mels(audio[i]))) for audio in (task.heldout, made)))
        assert np.abs(pictures[f"heldout_mel/{i}"].astype(int) - again).max() < 5


def test_saved_generator_is_loaded(task, generator, tmp_path):
    task.save(tmp_path, generator, {"steps": 3})
    assert MELGAN.exists_in(tmp_path)
    loaded, config = load(tmp_path, MELGAN)
    assert config == SMALL
    mel = np.full((1, 4, 128), -3.0, np.float32)
    np.testing.assert_array_equal(jax.jit(loaded)(mel), jax.jit(generator)(mel))
