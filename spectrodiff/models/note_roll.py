"""The note roll: an estimate of the mel from the notes alone, computed on the decoder's frame axis.

It gives the decoder the alignment of notes and frames, which cross-attention would otherwise have to learn.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import LOG_CEILING, LOG_FLOOR, MEL_BINS
from spectrodiff.config import ModelConfig
from spectrodiff.models.layers import Dense
from spectrodiff.models.note_events import NoteEvents

# Peaks of the triangular kernels, in frames (20 ms) after a note's onset, after its offset and, for a note that began
# before the window, after the start of the window. They are dense at first, where the sound changes fast.
_SINCE_ONSET = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_SINCE_START = (0.0, 64.0, 192.0)
_FIRST_GUESS = -3.0  # log magnitude of a note at initialisation, well above the floor, so that gradients do not vanish
_LOUDEST = 8.0  # largest log magnitude, against overflow


def since_offset(release: int) -> tuple[float, ...]:
    """Returns the peaks after a note's offset: 0 and the powers of 2 up to `release`."""
    return (0.0, *(2.0**i for i in range(release.bit_length())))


def kernel_count(release: int) -> int:
    """Returns the number of kernels of a note, given the peak of the last release kernel in frames."""
    return len(_SINCE_ONSET) + len(since_offset(release)) + len(_SINCE_START)


def _triangular(time: Float[Array, "*n"], knots: tuple[float, ...], stays: bool) -> Float[Array, "*n k"]:
    """Returns triangular kernels with peaks at `knots`, which are the weights of linear interpolation between them.

    The first kernel rises over one frame. The last one falls to 0 at twice the last knot, or if `stays` remains 1.
    """
    points = jnp.array(knots)
    time = time[..., None]
    before = jnp.concatenate([points[:1] - 1.0, points[:-1]])
    after = jnp.concatenate([points[1:], points[-1:] * 2])
    rising = (time - before) / (points - before)
    falling = (after - time) / (after - points)
    if stays:
        falling = jnp.where(points == points[-1], 1.0, falling)
    return jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def roll_kernels(notes: NoteEvents, frames: int, release: int = 16) -> Float[Array, "t n k"]:
    """Returns the weight of each phase of each note (after its onset, after its offset, ...) in each frame.

    The last release kernel peaks `release` frames after the offset, and ends at twice that. `notes` are those of one
    window; the kernels of notes that are not valid are 0. The time of a frame is the centre of its analysis window of
    640 samples, which is one frame after its first sample.
    """
    time = jnp.arange(frames)[:, None] + 1.0
    tied, drum = jnp.isneginf(notes.onset), notes.drum
    held = jnp.where(drum, 1.0, jnp.clip(notes.offset - time + 0.5, 0.0, 1.0))  # 1 until the offset
    never = jnp.full_like(time, -9.0)
    attack = _triangular(jnp.where(tied, never, time - notes.onset), _SINCE_ONSET, stays=True)
    decay = _triangular(
        jnp.where(jnp.isposinf(notes.offset), never, time - notes.offset), since_offset(release), stays=False
    )
    sustain = _triangular(jnp.where(tied, time, never), _SINCE_START, stays=True)
    kernels = jnp.concatenate([attack * held[..., None], decay, sustain * held[..., None]], -1)
    return jnp.where(notes.valid[:, None], kernels, 0.0)


class NoteRoll(nnx.Module):
    """A layer that estimates the mel as the sum of one spectrum per note and phase, weighted by `roll_kernels`.

    The sum is over magnitudes, before the logarithm, because the magnitudes of simultaneous notes approximately add.
    """

    def __init__(self, cfg: ModelConfig, mean: float, std: float, *, rngs: nnx.Rngs):
        self.mean, self.std = mean, std
        self.project = Dense(cfg.width, kernel_count(cfg.roll_release) * MEL_BINS, rngs=rngs)

    def __call__(self, encoded: Float[Array, "b n d"], kernels: Float[Array, "b t n k"]) -> Float[Array, "b t m"]:
        """Returns the sketch, normalised as decoders' targets are: (scaled mel - mean) / std.

        `encoded` is the output of the note encoder, from which the spectra of each note are projected.
        """
        spectra = jnp.exp(jnp.minimum(self.project(encoded).astype(jnp.float32) + _FIRST_GUESS, _LOUDEST))
        magnitude = kernels.reshape(*kernels.shape[:2], -1) @ spectra.reshape(encoded.shape[0], -1, MEL_BINS)
        scaled = 2.0 * (jnp.log(magnitude + jnp.exp(LOG_FLOOR)) - LOG_FLOOR) / (LOG_CEILING - LOG_FLOOR) - 1.0
        return (scaled - self.mean) / self.std
