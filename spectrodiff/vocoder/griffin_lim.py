"""Log-mel to audio without any weights: solve for magnitudes, guess phases from their peaks, then agree on both.

Frames are refined from every HOP samples to every FINE_HOP, which makes the phases far better determined.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from spectrodiff.audio.mel import FFT_SIZE, HOP, MAGNITUDE_RANGE, WINDOW, hann, mel_matrix
from spectrodiff.vocoder.streaming import Audio, Mel, windows

FINE_HOP = 80
BLOCKS = WINDOW // FINE_HOP  # a frame is this many blocks of FINE_HOP samples
BEFORE, CHUNK, AFTER = 4, 124, 8  # frames; two chunks and what follows them fill one window of 256 frames
FADE = 2 * HOP  # samples over which a chunk lets go of what the chunk before it expected
RADIANS = 2 * np.pi * np.arange(FFT_SIZE // 2 + 1) / FFT_SIZE  # per sample, of each FFT bin

Magnitude = Float[Array, "n f"]
Spectrum = Complex[Array, "n f"]


@dataclasses.dataclass(frozen=True)
class GriffinLim:
    """A vocoder: unscaled log-mel [t, MEL_BINS] to audio [t * HOP]. Deterministic, and needs no training.

    On rendered piano, strings and rock, starting from phases that follow the spectral peaks made 16 iterations as true
    to the tones as 60 from random phases; more iterations only blur the attacks.
    """

    iterations: int = 16
    solver_iterations: int = 30
    momentum: float = 0.99  # Perraudin et al. 2013

    def __call__(self, mel: Mel) -> Audio:
        """Raises InputError for a mel that is empty, of another shape, or not all numbers."""
        return np.concatenate(list(self.stream([mel])))

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as CHUNK + AFTER frames have come; joined, it is what calling with all of them gives.

        A chunk is held to the last samples of the one before it while its phases are sought, and then let go slowly,
        so tones run on through the seam.
        """
        settings = (self.iterations, self.solver_iterations, self.momentum)
        known = np.zeros(BEFORE * HOP + FADE, np.float32)
        fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(FADE) / FADE)
        hold = np.concatenate([np.ones(BEFORE * HOP), fade]).astype(np.float32)
        for count, (window, frames) in enumerate(windows(mels, BEFORE, CHUNK, AFTER)):
            if count == 0:  # frames that begin before the piece would soften an attack in its first
                window = np.concatenate([window[BEFORE : BEFORE + 1].repeat(BEFORE, axis=0), window[BEFORE:]])
            holding = hold if count else np.where(hold < 1.0, 0.0, hold).astype(np.float32)
            audio = np.asarray(_invert(window, known, holding, *settings))
            yield audio[BEFORE * HOP :][: frames * HOP]
            known = audio[CHUNK * HOP :][: len(known)]


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _invert(
    mel: Float[Array, "t m"],
    known: Float[Array, " k"],
    hold: Float[Array, " k"],
    iterations: int,
    solver_iterations: int,
    momentum: float,
) -> Float[Array, " s"]:
    """Audio of a mel whose first k samples are known as far as `hold` (0 to 1) says.

    Fast Griffin-Lim (Perraudin et al. 2013): project on the wanted magnitudes, then on what is the spectrum of some
    audio, and step a little further the same way.
    """
    magnitude = refine(solve_magnitude(jnp.exp(mel), solver_iterations))

    def audio_of(spectrum: Spectrum) -> Float[Array, " s"]:
        audio = istft(magnitude * spectrum / (jnp.abs(spectrum) + 1e-12))
        return audio.at[: len(known)].set(hold * known + (1.0 - hold) * audio[: len(known)])

    def iterate(carry, _):
        previous, spectrum = carry
        consistent = stft(audio_of(spectrum))
        return (consistent, consistent + momentum * (consistent - previous)), None

    spectrum = jnp.exp(1j * peak_phases(magnitude, stft(known[: BEFORE * HOP])))
    (_, spectrum), _ = jax.lax.scan(iterate, (magnitude * spectrum, spectrum), length=iterations)
    return audio_of(spectrum)[: len(mel) * HOP]


def solve_magnitude(mel: Float[Array, "t m"], iterations: int) -> Float[Array, "t f"]:
    """Magnitudes, all positive, whose mel is `mel` (magnitudes too): multiplicative least squares (Lee & Seung 2001).

    Many fit; starting from the mel spread evenly over its bins finds a smooth one.
    """
    matrix = mel_matrix().astype(np.float32)
    target = mel @ matrix.T
    start = target / (matrix.sum(axis=1) + 1e-9)

    def improve(x, _):
        return x * target / ((x @ matrix) @ matrix.T + 1e-9), None

    return jax.lax.scan(improve, start, length=iterations)[0]


def refine(magnitude: Float[Array, "t f"]) -> Magnitude:
    """Frames every FINE_HOP samples from frames every HOP, n = t * HOP / FINE_HOP, linear in log magnitude."""
    levels = jnp.log(jnp.maximum(magnitude, MAGNITUDE_RANGE[0]))
    following = jnp.concatenate([levels[1:], levels[-1:]])
    way = jnp.arange(0.0, 1.0, FINE_HOP / HOP)[:, None]
    return jnp.exp((1 - way) * levels[:, None] + way * following[:, None]).reshape(-1, levels.shape[-1])


def peak_phases(magnitude: Magnitude, known: Complex[Array, "k f"]) -> Float[Array, "n f"]:
    """Phases that continue those of the `known` first frames: every peak of a frame is a sinusoid that turns at its
    own frequency, and the bins around it turn along (Beauregard et al. 2015).
    """
    bins = jnp.arange(magnitude.shape[1])
    levels = jnp.pad(jnp.log(magnitude + 1e-9), ((0, 0), (1, 1)), constant_values=jnp.inf)
    left, here, right = levels[:, :-2], levels[:, 1:-1], levels[:, 2:]
    peak = (here >= left) & (here > right)
    below = jax.lax.cummax(jnp.where(peak, bins, -FFT_SIZE), axis=1)
    above = jax.lax.cummin(jnp.where(peak, bins, 2 * FFT_SIZE), axis=1, reverse=True)
    nearest = jnp.where(peak.any(axis=1, keepdims=True), jnp.where(bins - below <= above - bins, below, above), bins)
    curve = jnp.where(peak, left - 2 * here + right, -1.0)
    offset = jnp.clip(jnp.where(peak, (left - right) / (2 * curve), 0.0), -0.5, 0.5)  # the parabola's top
    advance = (bins + offset) * (2 * np.pi * FINE_HOP / FFT_SIZE)

    def turn(phase, frame):
        nearest, advance = frame
        phase = (phase + advance)[nearest]
        return phase, phase

    centre = RADIANS * (WINDOW / 2)  # phases are followed at the middle of a frame, where neighbours agree
    random = jax.random.uniform(jax.random.key(0), bins.shape, maxval=2 * np.pi)  # silence has no phase to go on from
    start = jnp.where(jnp.abs(known[-1]) > 1e-3, jnp.angle(known[-1]) + centre, random)
    _, phases = jax.lax.scan(turn, start, (nearest[len(known) :], advance[len(known) :]))
    return jnp.concatenate([jnp.angle(known), phases - centre])


def stft(audio: Float[Array, " s"]) -> Spectrum:
    """Frame i of WINDOW samples starts at sample FINE_HOP * i; only whole frames."""
    blocks = audio.reshape(-1, FINE_HOP)
    frames = blocks.shape[0] - BLOCKS + 1
    framed = jnp.concatenate([blocks[k : k + frames] for k in range(BLOCKS)], axis=1)
    return jnp.fft.rfft(framed * hann(WINDOW).astype(np.float32), FFT_SIZE)


def istft(spectrum: Spectrum) -> Float[Array, " s"]:
    """Least-squares inverse of `stft`, but for the first and last WINDOW - FINE_HOP samples, which fade."""
    window = hann(WINDOW)
    window = (window / (np.square(window).sum() / FINE_HOP)).astype(np.float32)
    framed = jnp.fft.irfft(spectrum, FFT_SIZE)[:, :WINDOW] * window
    blocks = framed.reshape(-1, BLOCKS, FINE_HOP)
    return sum(jnp.pad(blocks[:, k], ((k, BLOCKS - 1 - k), (0, 0))) for k in range(BLOCKS)).reshape(-1)
