"""The loader that keeps audio on the device: its crops match the recordings and are drawn like those from disk."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from inputs import make_recording, write_dataset

from spectrodiff.audio.mel import EXTRA_FRAMES, HOP
from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import decode
from spectrodiff.data.resident_audio import ResidentAudioLoader
from spectrodiff.errors import InputError
from spectrodiff.training.vocoder import VocoderTask
from spectrodiff.vocoder.generator import GeneratorConfig

FRAMES = 8
LENGTH = (FRAMES + EXTRA_FRAMES) * HOP
LOADER = ResidentAudioLoader(workers=1)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """`two` has a recording shorter than a crop and one of 4 s, `one` has one of 2 s."""
    folder = tmp_path_factory.mktemp("data")
    short = make_recording(1, 1.0)
    short = dataclasses.replace(short, audio=short.audio[: LENGTH // 2 + 7])
    write_dataset(folder, "two", {"train": [short, make_recording(2, 4.0)]})
    write_dataset(folder, "one", {"train": [make_recording(3, 2.0)]})
    return Mixture(str(folder), {"two": 0.75, "one": 0.25})


def take(mixture, count=1, batch_size=8, seed=0, start=0, loader=LOADER, **options):
    batches = loader.batches(mixture, Crops(FRAMES, **options), batch_size=batch_size, seed=seed, start=start)
    return jax.device_get(list(itertools.islice(batches, count)))


def recordings(mixture):
    return [
        [decode(record).audio for record in open_dataset(mixture.data_dir, name)["train"]] for name in ("two", "one")
    ]


def test_crops_match_recordings_padded_with_silence(mixture):
    (batch,), audio = take(mixture, batch_size=300), recordings(mixture)
    assert batch["audio"].shape == (300, LENGTH)
    for crop, (which, index), start in zip(batch["audio"], batch["record"], batch["start"], strict=True):
        part = audio[which][index][start * HOP :][:LENGTH]
        np.testing.assert_allclose(crop, np.pad(part, (0, LENGTH - len(part))), atol=2**-15)
    assert {(0, 0), (0, 1), (1, 0)} == {(which, index) for which, index in batch["record"].tolist()}


def test_all_crop_positions_are_drawn_with_dataset_shares(mixture):
    """Every position that `Crops` allows is drawn; dataset shares agree within four standard deviations."""
    count = 4000
    (batch,), audio = take(mixture, batch_size=count), recordings(mixture)
    which = batch["record"][:, 0]
    assert abs(np.mean(which == 0) - 0.75) < 4 * np.sqrt(0.75 * 0.25 / count)
    positions = (len(audio[1][0]) - LENGTH) // HOP
    found = np.bincount(batch["start"][which == 1], minlength=positions)
    assert len(found) == positions
    assert found.min() > 0


def test_seed_and_start_determine_batches_for_any_worker_count(mixture):
    def same(ours, theirs):
        return all(np.array_equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in a)

    whole = take(mixture, 3)
    assert same(take(mixture, 2, start=8), whole[1:])
    assert same(take(mixture, 3, loader=ResidentAudioLoader(workers=2)), whole)
    assert not same(take(mixture, 3, seed=1), whole)


def test_gain_is_drawn_per_crop(mixture):
    (plain,), (loud,) = (
        take(mixture, batch_size=16, augmentation=Augmentation(gain_db=db)) for db in ((0.0, 0.0), (-6.0, 6.0))
    )
    gains = []
    audible = np.abs(plain["audio"]).max(1) > 0.01
    assert audible.sum() > 3
    for one, other in zip(plain["audio"][audible], loud["audio"][audible], strict=True):
        gain = (one @ other) / (one @ one)
        np.testing.assert_allclose(other, gain * one, atol=1e-5)
        gains.append(20 * np.log10(gain))
    assert -6.0 <= min(gains) < max(gains) <= 6.0
    assert np.std(gains) > 1.0


def test_batch_format_matches_the_default_loader(mixture):
    task = VocoderTask(mixture, config=GeneratorConfig(channels=16, dilations=(1,)), batch_size=2, crop_frames=8)
    other = task.batches(seed=0)
    batch, ours = next(other), next(dataclasses.replace(task, loader=LOADER).batches(seed=0))
    other.close()
    assert {name: (array.shape, array.dtype) for name, array in ours.items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert task.sources(jax.device_get(ours))[0].startswith(("two/", "one/"))


def test_invalid_settings_raise_input_error(mixture):
    with pytest.raises(InputError, match=r"\bgain\b.*\bLoader$"):
        take(mixture, augmentation=Augmentation(semitones=1))
    with pytest.raises(InputError, match=r"ResidentAudioLoader\.workers is 0"):
        ResidentAudioLoader(workers=0)
