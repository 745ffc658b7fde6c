import numpy as np
from inputs import make_recording

from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.crops import Crops
from spectrodiff.data.recordings import Recording, encode, from_flac

RECORD = encode(make_recording(1))
AUDIO = from_flac(RECORD["audio"])
SAMPLES = (8 + 16) * 320


def draw(crops, record=RECORD, seed=0):
    return crops.draw(iter([crops.read(record)[0]]), np.random.default_rng(seed))["audio"]


def test_crops_start_at_random_frame_boundaries():
    starts = set()
    for seed in range(200):
        crop = draw(Crops(8), seed=seed)
        assert crop.shape == (SAMPLES,)
        assert crop.dtype == np.float32
        found = [at for at in range(0, len(AUDIO), 320) if np.array_equal(AUDIO[at : at + SAMPLES], crop)]
        assert found
        starts.update(found if len(found) == 1 else [])
    assert min(starts) < 0.1 * len(AUDIO)
    assert len(starts) > 50


def test_short_recordings_are_zero_padded():
    notes = make_recording(0).notes
    crop = draw(Crops(8), encode(Recording("short", np.full(1000, 0.5, np.float32), notes)))
    np.testing.assert_array_equal(crop, np.pad(np.full(1000, 0.5), (0, SAMPLES - 1000)))


def test_gain_scales_the_crop():
    loud = draw(Crops(8, Augmentation(gain_db=(6.0, 6.0))))
    rng = np.random.default_rng(0)
    rng.uniform()  # drawn for the gain
    start = 320 * int(rng.integers((len(AUDIO) - SAMPLES) // 320))
    np.testing.assert_allclose(loud, 10**0.3 * AUDIO[start : start + SAMPLES], rtol=1e-5)
