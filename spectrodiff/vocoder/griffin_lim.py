"""The Griffin-Lim vocoder (Griffin & Lim 1984): magnitudes from a log-mel, then phases that are consistent with them.

Magnitudes are estimated by a trained `Refiner`, or from the mel without any weights. Their frames are FINE_HOP samples
apart instead of HOP, and determine the phases much better. The first phases follow the peaks of the magnitudes;
Griffin-Lim iterations improve them. They also improve the magnitudes, which are only an estimate, while the mel is
known (joint estimation, as Masuyama et al. 2023, with other updates).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Complex, Float, Int32

from spectrodiff.audio.mel import FFT_SIZE, HOP, MAGNITUDE_RANGE, MEL_BINS, WINDOW
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.fingerprint import fingerprint
from spectrodiff.vocoder.magnitudes import interpolate, mel_correction, solve_magnitude
from spectrodiff.vocoder.refiner import Refiner, receptive_frames
from spectrodiff.vocoder.stft import BINS, FINE, FINE_HOP, Magnitude, Spectrum, istft, stft
from spectrodiff.vocoder.streaming import Audio, Mel, overlapping_chunks, prepared_meanwhile

BEFORE, AFTER = 4, 8  # mel frames before and after a chunk that are inverted together with it
FADE = 2 * HOP  # samples over which a chunk is cross-faded from the continuation of the one before
_ONSET = 16  # samples over which a piece fades in, against a click if it starts with an attack
_REACH = 2.0  # nats by which magnitudes may leave the estimate, so that a spectrum of zeros does not explode
_MATCHING = 3  # iterations of `mel_correction`, in each iteration of Griffin-Lim
RADIANS = 2 * np.pi * np.arange(BINS) / FFT_SIZE  # per sample, of each FFT bin


@dataclasses.dataclass(frozen=True)
class GriffinLim:
    """A deterministic vocoder: unscaled log-mel [t, MEL_BINS] to audio [t * HOP].

    Without a refiner it needs no training. `freedom`, from 0 to 1, is that of the magnitudes in the iterations: 0 keeps
    the estimated ones, and 1 keeps only their mel. It is not used with a refiner whose magnitudes need not agree with
    the mel (`RefinerConfig.agreement` 0).
    """

    refiner: Refiner | None = None
    iterations: int = 32
    solver_iterations: int = 30
    momentum: float = 0.99  # Perraudin et al. 2013
    freedom: float = 0.7

    @property
    def receptive_field(self) -> int:
        """The number of frames on either side that the magnitudes of a frame depend on."""
        return 0 if self.refiner is None else receptive_frames(self.refiner.cfg)

    @property
    def chunk(self) -> int:
        """The number of frames in a chunk: two chunks and the frames needed after them are a window of 256 frames."""
        return (WINDOW_FRAMES - AFTER - self.receptive_field) // 2

    @functools.cached_property
    def _magnitudes(self) -> tuple[Callable[..., Magnitude], Any]:
        """A pair (function, first argument), where the function estimates the magnitudes of a mel.

        The jitted function's other arguments are an unscaled log-mel [t, m] and the indices [n] of STFT frames. It
        returns the magnitudes of these, [n, BINS].
        """
        if self.refiner is None:
            return _smooth_magnitudes, self.solver_iterations
        graph, weights = nnx.split(self.refiner)
        return jax.jit(lambda weights, mel, rows: nnx.merge(graph, weights).magnitudes(mel)[rows]), weights

    @property
    def _settings(self) -> tuple[int, float, float]:
        """The last arguments of `invert`."""
        fixed = self.refiner is not None and not self.refiner.cfg.agreement
        return self.iterations, self.momentum, 0.0 if fixed else self.freedom

    def _prepare(self) -> None:
        """Compiles the programs of `stream`, or loads them from JAX's cache."""
        magnitudes, argument = self._magnitudes
        frames = BEFORE + self.chunk + AFTER
        mel = jax.ShapeDtypeStruct((frames + 2 * self.receptive_field, MEL_BINS), jnp.float32)
        known = jax.ShapeDtypeStruct((BEFORE * HOP + FADE,), jnp.float32)
        lowered = magnitudes.lower(argument, mel, jax.ShapeDtypeStruct((frames * FINE,), jnp.int32))
        lowered.compile()
        mel = jax.ShapeDtypeStruct((frames, MEL_BINS), jnp.float32)
        invert.lower(lowered.out_info, mel, known, known, *self._settings).compile()

    def __call__(self, mel: Mel) -> Audio:
        """Returns audio; raises InputError for a mel that is empty, of another shape, or not a log-mel."""
        return np.concatenate(list(self.stream([mel])))

    def stream(self, mels: Iterable[Mel]) -> Iterator[Audio]:
        """Yields audio as soon as a chunk and the frames it needs after it have arrived.

        The concatenated audio equals that of a call with the whole mel. Each chunk is inverted together with the BEFORE
        frames before it. In each iteration, the first samples are set to those of the previous chunk, cross-faded over
        the last FADE of them, so that the phases of tones continue.
        """
        known = np.zeros(BEFORE * HOP + FADE, np.float32)
        fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(FADE) / FADE)
        hold = np.concatenate([np.ones(BEFORE * HOP), fade]).astype(np.float32)
        margin = self.receptive_field
        rows = np.arange(margin * FINE, (margin + BEFORE + self.chunk + AFTER) * FINE, dtype=np.int32)
        magnitudes, argument = self._magnitudes
        mels = prepared_meanwhile(mels, self._prepare)
        chunks = overlapping_chunks(mels, margin + BEFORE, self.chunk, AFTER + margin)
        for index, (window, frames) in enumerate(chunks):
            chunk_rows, chunk_hold = rows, hold
            if index == 0:
                # Silence before the piece would soften an attack in its first frame, which is repeated instead. There
                # is no previous chunk to cross-fade from.
                chunk_rows = np.maximum(rows, rows[BEFORE * FINE])
                chunk_hold = np.where(hold < 1.0, 0.0, hold).astype(np.float32)
            magnitude = magnitudes(argument, window, chunk_rows)
            mel = window[chunk_rows[::FINE] // FINE]
            audio = np.asarray(invert(magnitude, mel, known, chunk_hold, *self._settings))
            inner = audio[BEFORE * HOP :][: frames * HOP]
            yield inner if index else inner * np.minimum(np.arange(len(inner), dtype=np.float32) / _ONSET, 1.0)
            known = audio[self.chunk * HOP :][: len(known)]

    def identity(self) -> str:
        """Returns a fingerprint of the refiner's weights and config and of the settings; see `Vocoder`."""
        settings = (self.iterations, self.solver_iterations, self.momentum, self.freedom)
        if self.refiner is None:
            return f"GriffinLim {fingerprint(nnx.State({}), *settings)}"
        return f"GriffinLim with refiner {fingerprint(self.refiner, self.refiner.cfg, *settings)}"


@functools.partial(jax.jit, static_argnums=0)
def _smooth_magnitudes(iterations: int, mel: Float[Array, "t m"], rows: Int32[Array, " n"]) -> Magnitude:
    magnitude = solve_magnitude(jnp.exp(mel), iterations=iterations)
    return jnp.exp(interpolate(jnp.log(jnp.maximum(magnitude, MAGNITUDE_RANGE[0])), FINE))[rows]


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def invert(
    magnitude: Magnitude,
    mel: Float[Array, "t m"],
    known: Float[Array, " k"],
    hold: Float[Array, " k"],
    iterations: int,
    momentum: float,
    freedom: float,
) -> Float[Array, " s"]:
    """Returns audio whose STFT has approximately the magnitudes [n, f]; it has n * FINE_HOP samples.

    The first k samples are the average of `known`, with weights `hold` from 0 to 1, and the reconstruction. `known` is
    at least BEFORE * HOP samples long, from which the first phases continue.

    This is fast Griffin-Lim (Perraudin et al. 2013): an iteration projects on spectra with the target's magnitudes,
    then on consistent spectra, and extrapolates the change by `momentum`. With `freedom` above 0, the target is not
    `magnitude` but the geometric mean of that and of the magnitudes so far, whose share is `freedom`, scaled so that
    the log-mel of every FINE-th frame is `mel`, t = n / FINE. Otherwise `mel` is not used.
    """

    estimate = jnp.log(magnitude + 1e-9)

    def gains(spectrum: Spectrum) -> Magnitude:
        """Returns the target's magnitudes divided by those of the spectrum."""
        level = 0.5 * jnp.log(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-18)
        if not freedom:
            return jnp.exp(estimate - level)
        target = estimate + freedom * jnp.clip(level - estimate, -_REACH, _REACH)
        return jnp.exp(target + mel_correction(jnp.exp(target[::FINE]), mel, _MATCHING) - level)

    def audio_of(spectrum: Spectrum) -> Float[Array, " s"]:
        audio = istft(gains(spectrum) * spectrum)
        return audio.at[: len(known)].set(hold * known + (1.0 - hold) * audio[: len(known)])

    def iterate(carry, _):
        previous, spectrum = carry
        consistent = stft(audio_of(spectrum))
        return (consistent, consistent + momentum * (consistent - previous)), None

    spectrum = magnitude * jnp.exp(1j * peak_phases(magnitude, stft(known[: BEFORE * HOP])))
    (_, spectrum), _ = jax.lax.scan(iterate, (spectrum, spectrum), length=iterations)
    return audio_of(spectrum)[: len(magnitude) * FINE_HOP]


def peak_phases(magnitude: Magnitude, known: Complex[Array, "k f"]) -> Float[Array, "n f"]:
    """Returns phases that continue those of the first k frames, whose spectra are `known` (Beauregard et al. 2015).

    Each peak of a frame's magnitudes is taken for a sinusoid, whose frequency determines by how much its phase advances
    to the next frame. The other bins have the phase of the nearest peak.
    """
    bins = jnp.arange(magnitude.shape[1])
    levels = jnp.pad(jnp.log(magnitude + 1e-9), ((0, 0), (1, 1)), constant_values=jnp.inf)
    left, here, right = levels[:, :-2], levels[:, 1:-1], levels[:, 2:]
    peak = (here >= left) & (here > right)
    below = jax.lax.cummax(jnp.where(peak, bins, -FFT_SIZE), axis=1)
    above = jax.lax.cummin(jnp.where(peak, bins, 2 * FFT_SIZE), axis=1, reverse=True)
    nearest = jnp.where(peak.any(axis=1, keepdims=True), jnp.where(bins - below <= above - bins, below, above), bins)
    curve = jnp.where(peak, left - 2 * here + right, -1.0)
    offset = jnp.clip(jnp.where(peak, (left - right) / (2 * curve), 0.0), -0.5, 0.5)  # of the vertex of a parabola
    advance = (bins + offset) * (2 * np.pi * FINE_HOP / FFT_SIZE)

    def advance_phases(phase, frame):
        nearest, advance = frame
        phase = (phase + advance)[nearest]
        return phase, phase

    centre = RADIANS * (WINDOW / 2)  # phases at the middle of a frame are equal for the bins of a peak
    random = jax.random.uniform(jax.random.key(0), bins.shape, maxval=2 * np.pi)  # for bins that are silent in `known`
    start = jnp.where(jnp.abs(known[-1]) > 1e-3, jnp.angle(known[-1]) + centre, random)
    _, phases = jax.lax.scan(advance_phases, start, (nearest[len(known) :], advance[len(known) :]))
    return jnp.concatenate([jnp.angle(known), phases - centre])
