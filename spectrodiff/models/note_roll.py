"""Notes laid onto the decoder's frames: the physical time axis that cross-attention would first have to discover."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from spectrodiff.audio.mel import LOG_CEILING, LOG_FLOOR, MEL_BINS
from spectrodiff.config import ModelConfig
from spectrodiff.models.layers import Dense
from spectrodiff.models.note_events import NoteEvents

# Frames (20 ms) after an onset, an offset or, for a note begun before the window, its start, at which a hat function
# peaks: dense at first, where sound changes fast. The last of a row stays up for as long as the note lasts.
_SINCE_ONSET = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_SINCE_OFFSET = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_SINCE_START = (0.0, 64.0, 192.0)
KERNELS = len(_SINCE_ONSET) + len(_SINCE_OFFSET) + len(_SINCE_START)
_FIRST_GUESS = -3.0  # log magnitude of an untrained note: audible, so that gradients reach it
_LOUDEST = 8.0


def _triangular(time: Float[Array, "*n"], knots: tuple[float, ...], stays: bool) -> Float[Array, "*n k"]:
    """Weights of linear interpolation between `knots`; it comes in over the frame before the first, and unless it stays
    goes out until twice the last."""
    points = jnp.array(knots)
    time = time[..., None]
    before = jnp.concatenate([points[:1] - 1.0, points[:-1]])
    after = jnp.concatenate([points[1:], points[-1:] * 2])
    rising = (time - before) / (points - before)
    falling = (after - time) / (after - points)
    if stays:
        falling = jnp.where(points == points[-1], 1.0, falling)
    return jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def roll_kernels(notes: NoteEvents, frames: int) -> Float[Array, "t n k"]:
    """How much of each phase of each note's life lies in each frame.

    `notes` has fields of shape [n]; the result is zero for rows that are not real. A frame is taken at its centre,
    one frame (half the analysis window of 640 samples) after its first sample.
    """
    time = jnp.arange(frames)[:, None] + 1.0
    tied, drum = jnp.isneginf(notes.onset), notes.drum
    held = jnp.where(drum, 1.0, jnp.clip(notes.offset - time + 0.5, 0.0, 1.0))  # 1 until the offset
    never = jnp.full_like(time, -9.0)
    since_onset = _triangular(jnp.where(tied, never, time - notes.onset), _SINCE_ONSET, stays=True)
    since_offset = _triangular(
        jnp.where(jnp.isposinf(notes.offset), never, time - notes.offset), _SINCE_OFFSET, stays=False
    )
    since_start = _triangular(jnp.where(tied, time, never), _SINCE_START, stays=True)
    kernels = jnp.concatenate([since_onset * held[..., None], since_offset, since_start * held[..., None]], -1)
    return jnp.where(notes.valid[:, None], kernels, 0.0)


class NoteRoll(nnx.Module):
    """A first sketch of the mel from the notes alone: each note's own spectrum in each phase, added up.

    Magnitudes add, their logarithms do not, so the sum is taken before the logarithm: the network after it need only
    learn what notes do to one another, and the rest.
    """

    def __init__(self, cfg: ModelConfig, mean: float, std: float, *, rngs: nnx.Rngs):
        self.mean, self.std = mean, std
        self.project = Dense(cfg.width, KERNELS * MEL_BINS, rngs=rngs)

    def __call__(self, encoded: Float[Array, "b n d"], kernels: Float[Array, "b t n k"]) -> Float[Array, "b t m"]:
        """The sketch, in the space that decoders work in: (scaled mel - mean) / std."""
        spectra = jnp.exp(jnp.minimum(self.project(encoded).astype(jnp.float32) + _FIRST_GUESS, _LOUDEST))
        magnitude = kernels.reshape(*kernels.shape[:2], -1) @ spectra.reshape(encoded.shape[0], -1, MEL_BINS)
        scaled = 2.0 * (jnp.log(magnitude + jnp.exp(LOG_FLOOR)) - LOG_FLOOR) / (LOG_CEILING - LOG_FLOOR) - 1.0
        return (scaled - self.mean) / self.std
