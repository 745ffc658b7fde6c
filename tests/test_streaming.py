import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spectrodiff.audio.mel import LOG_FLOOR
from spectrodiff.errors import InputError
from spectrodiff.vocoder.generator import Generator, GeneratorConfig, receptive_frames
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN, overlapping_chunks, prepared_meanwhile

CFG = GeneratorConfig(channels=32, excitation="noise")


@pytest.fixture(scope="module")
def generator():
    return Generator(CFG, rngs=nnx.Rngs(0))


def random_mel(frames):
    return np.random.default_rng(frames).uniform(-9.0, 3.0, (frames, 128)).astype(np.float32)


def decode_whole(generator, mel):
    """Decodes the mel and silence after it, always of the same length, for which the generator is compiled once."""
    before, after = receptive_frames(CFG), receptive_frames(CFG) + 100 - len(mel)
    padded = np.pad(mel, ((before, after), (0, 0)), constant_values=LOG_FLOOR)
    audio = generator(jnp.asarray(padded)[None], jnp.array([-before]))[0]
    return np.asarray(audio)[before * 320 :][: len(mel) * 320]


@pytest.mark.parametrize("frames", [1, 16, 17, 50, 100])
def test_decoding_in_chunks_equals_decoding_whole(generator, frames):
    mel = random_mel(frames)
    audio = MelGAN(generator, chunk=16)(mel)
    assert audio.shape == (frames * 320,)
    np.testing.assert_allclose(audio, decode_whole(generator, mel), atol=1e-5)


@pytest.mark.parametrize("pieces", [[100], [1] * 100, [0, 37, 0, 63], [99, 1]])
def test_stream_does_not_depend_on_piece_sizes(generator, pieces):
    mel, vocoder = random_mel(100), MelGAN(generator, chunk=16)
    arriving = np.split(mel, np.cumsum(pieces)[:-1])
    assert np.array_equal(np.concatenate(list(vocoder.stream(arriving))), vocoder(mel))


def test_error_in_the_thread_is_raised_by_the_iterator():
    def fails():
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        next(prepared_meanwhile([random_mel(1)], fails))


@pytest.fixture(scope="module")
def correction_vocoder():
    """A vocoder whose generator corrects the output of Griffin-Lim, and that generator."""
    cfg = GeneratorConfig(16, (2, 2), (1, 3), "griffin_lim")
    generator = Generator(cfg, rngs=nnx.Rngs(0))
    generator.leave.direction[...] += 0.1
    refiner = Refiner(RefinerConfig(width=8, layers=2, agreement=2), rngs=nnx.Rngs(1))
    return MelGAN(generator, 50, GriffinLim(refiner, iterations=2)), generator


@pytest.mark.parametrize("frames", [7, 300])
def test_corrections_in_chunks_equal_correcting_the_whole(correction_vocoder, frames):
    """Griffin-Lim has a different chunk size; 300 frames need several chunks of both."""
    vocoder, generator = correction_vocoder
    mel, padding = random_mel(frames), receptive_frames(generator.cfg)
    excitation = vocoder.griffin_lim(mel)
    assert frames < vocoder.griffin_lim.chunk or frames > 2 * vocoder.griffin_lim.chunk
    padded = np.pad(mel, ((padding, padding), (0, 0)), constant_values=LOG_FLOOR)[None]
    around = np.pad(excitation, padding * 320)[None]
    whole = np.asarray(nnx.jit(generator)(padded, None, around))[0, padding * 320 : -padding * 320]
    streamed = list(vocoder.stream(np.split(mel, frames)))
    tolerance = {"atol": 1e-5 * np.abs(whole).max()}
    np.testing.assert_allclose(np.concatenate(streamed), whole, **tolerance)
    np.testing.assert_allclose(vocoder(mel), whole, **tolerance)
    assert np.abs(whole - excitation).max() > 0.01 * np.abs(whole).max()


def test_corrected_audio_is_yielded_before_the_piece_ends(correction_vocoder):
    """It only needs the frames that Griffin-Lim uses after the generator's first chunk."""
    vocoder, _ = correction_vocoder
    taken = []

    def arriving():
        for k in range(1000):
            taken.append(k)
            yield random_mel(1)

    assert len(next(vocoder.stream(arriving()))) == 50 * 320
    assert len(taken) <= vocoder.chunk + vocoder.receptive_field + 2 * vocoder.griffin_lim.chunk


def test_identity_includes_the_griffin_lim_settings(correction_vocoder):
    vocoder, generator = correction_vocoder
    others = [MelGAN(generator, 50, GriffinLim(vocoder.griffin_lim.refiner, iterations=k)) for k in (2, 3)]
    assert [vocoder.identity() == other.identity() for other in others] == [True, False]


def test_audio_is_yielded_before_the_piece_ends(generator):
    taken = []

    def arriving():
        for k in range(100):
            taken.append(k)
            yield random_mel(1)

    vocoder = MelGAN(generator, chunk=16)
    assert len(next(vocoder.stream(arriving()))) == 16 * 320
    assert len(taken) == 16 + vocoder.receptive_field


def test_mel_length_does_not_recompile(generator):
    vocoder = MelGAN(generator, chunk=16)
    for frames in (1, 20, 70):
        vocoder(random_mel(frames))
    assert vocoder._decode._cache_size() == 1


def test_overlapping_chunks_start_on_a_fixed_grid():
    mel = -np.arange(2, 7, dtype=np.float32)[:, None] * np.ones((1, 128), np.float32)
    cut = [
        (list(window[:, 0]), frames)
        for window, frames in overlapping_chunks([mel[:2], mel[2:]], before=1, chunk=2, after=1)
    ]
    quiet = np.float32(LOG_FLOOR)
    assert cut == [([quiet, -2, -3, -4], 2), ([-3, -4, -5, -6], 2), ([-5, -6, quiet, quiet], 1)]


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (np.zeros((0, 128), np.float32), r"\bframes$"),
        (np.zeros((5, 80), np.float32), r"\[5, 80\]"),
        (np.full((5, 128), np.nan, np.float32), "frame 0"),
        (jnp.full((5, 128), np.inf), "frame 0"),
        (np.full((10, 128), 0.5, np.float32), "from 0.5 to 0.5"),  # scaled to [-1, 1]
        (np.full((5, 128), -23.0, np.float32), "from -23 to -23"),  # log power or decibels
        (np.full((5, 128), 300.0, np.float32), "from 300 to 300"),  # linear magnitudes
    ],
)
def test_invalid_mel_raises_input_error(generator, mel, message):
    with pytest.raises(InputError, match=message):
        MelGAN(generator, chunk=16)(mel)
