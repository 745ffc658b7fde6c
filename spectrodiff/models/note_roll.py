"""The note roll: an estimate of the mel from the notes alone, computed on the decoder's frame axis.

It gives the decoder the alignment of notes and frames, which cross-attention would otherwise have to learn.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from spectrodiff.audio.mel import LOG_CEILING, LOG_FLOOR, MEL_BINS
from spectrodiff.config import ModelConfig
from spectrodiff.models.layers import Dense
from spectrodiff.models.note_events import NoteEvents

# Peaks of the triangular kernels, in frames (20 ms): of all notes after the onset and (`since_offset`) the offset, and
# of a note that began before the window after the start of the window, since its onset is unknown. They are dense at
# first, where the sound changes fast.
_SINCE_ONSET = (-2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_SINCE_START = (0.0, 64.0, 192.0)
_INITIAL_LOG_MAGNITUDE = -3.0  # of a note, well above the floor, so that gradients do not vanish
_MAX_LOG_MAGNITUDE = 8.0  # against overflow
# Knots in frames after the start of the window, between which the weights of the continuation are interpolated.
_SINCE_BORDER = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_BORDER_FRAMES = 2  # frames at the end of the context, over which its log magnitudes are averaged


def since_offset(release: int) -> tuple[float, ...]:
    """Returns the peaks after a note's offset: 0 and the powers of 2 up to `release`."""
    return (0.0, *(2.0**i for i in range(release.bit_length())))


def kernel_count(release: int) -> int:
    """Returns the number of kernels of a note, given the peak of the last release kernel in frames."""
    return len(_SINCE_ONSET) + len(since_offset(release)) + len(_SINCE_START)


def _triangular(time: Float[Array, "*n"], knots: tuple[float, ...], hold_last: bool) -> Float[Array, "*n k"]:
    """Returns triangular kernels with peaks at `knots`, which are the weights of linear interpolation between them.

    The first kernel rises over one frame. The last one falls to 0 at twice the last knot, or stays 1
    if `hold_last`.
    """
    points = jnp.array(knots)
    time = time[..., None]
    before = jnp.concatenate([points[:1] - 1.0, points[:-1]])
    after = jnp.concatenate([points[1:], points[-1:] * 2])
    rising = (time - before) / (points - before)
    falling = (after - time) / (after - points)
    if hold_last:
        falling = jnp.where(points == points[-1], 1.0, falling)
    return jnp.clip(jnp.minimum(rising, falling), 0.0, 1.0)


def roll_kernels(notes: NoteEvents, frames: int, release: int = 16) -> Float[Array, "t n k"]:
    """Returns the weight in each frame of each phase of each note.

    The phases k are, in this order: attack, at peaks after the onset; release, at peaks after the offset; and sustain
    of a note that began before the window, at peaks after the start of the window. The last release kernel peaks
    `release` frames after the offset, and ends at twice that. `notes` are those of one window; the kernels of notes
    that are not valid are 0. The time of a frame is the centre of its analysis window of
    640 samples, which is one frame after its first sample.
    """
    time = jnp.arange(frames)[:, None] + 1.0
    tied, drum = jnp.isneginf(notes.onset), notes.drum
    held = jnp.where(drum, 1.0, jnp.clip(notes.offset - time + 0.5, 0.0, 1.0))  # 1 until the offset
    never = jnp.full_like(time, -9.0)  # before the first peak of all kernels, where they are 0
    attack = _triangular(jnp.where(tied, never, time - notes.onset), _SINCE_ONSET, hold_last=True)
    decay = _triangular(
        jnp.where(jnp.isposinf(notes.offset), never, time - notes.offset), since_offset(release), hold_last=False
    )
    sustain = _triangular(jnp.where(tied, time, never), _SINCE_START, hold_last=True)
    kernels = jnp.concatenate([attack * held[..., None], decay, sustain * held[..., None]], -1)
    return jnp.where(notes.valid[:, None], kernels, 0.0)


class NoteRoll(nnx.Module):
    """A layer that estimates the mel as the sum of one spectrum per note and phase, weighted by `roll_kernels`.

    The sum is over magnitudes, before the logarithm, because the magnitudes of simultaneous notes approximately add.

    With `ModelConfig.continuation`, the magnitudes of notes that began before the window, and of the noise floor, are
    multiplied by a factor for each mel bin with which, at the start of the window, they equal those of the last frames
    of the context. The logarithm of the factor decreases with time, by weights that are learnt for each mel bin.
    """

    def __init__(self, cfg: ModelConfig, mean: float, std: float, *, rngs: nnx.Rngs):
        self.mean, self.std = mean, std
        self.project = Dense(cfg.width, kernel_count(cfg.roll_release) * MEL_BINS, rngs=rngs)
        weights = jnp.tile(jnp.exp(-jnp.array(_SINCE_BORDER) / 8.0)[:, None], (1, MEL_BINS))
        self.continuation = nnx.data(nnx.Param(weights) if cfg.continuation else None)

    def __call__(
        self,
        encoded: Float[Array, "b n d"],
        kernels: Float[Array, "b t n k"],
        tied: Bool[Array, "b n"],
        context: Float[Array, "b c m"],
        context_mask: Bool[Array, "b c"],
    ) -> Float[Array, "b t m"]:
        """Returns the sketch, normalised as decoders' targets are: (scaled mel - mean) / std.

        `encoded` is the output of the note encoder, from which the spectra of each note are projected; `tied` notes
        began before the window. `context` is a scaled log-mel, whose valid frames come first and are those where
        `context_mask` is true. Both are of use to the continuation only.
        """
        log_spectra = self.project(encoded).astype(jnp.float32) + _INITIAL_LOG_MAGNITUDE
        spectra = jnp.exp(jnp.minimum(log_spectra, _MAX_LOG_MAGNITUDE))
        spectra = spectra.reshape(*encoded.shape[:2], -1, MEL_BINS)
        if self.continuation is None:
            magnitude = _weighted_sum(kernels, spectra) + jnp.exp(LOG_FLOOR)
        else:
            # The attack kernels of tied notes are 0, as are the sustain kernels of notes that begin in the window.
            attacks, sustains = len(_SINCE_ONSET), len(_SINCE_START)
            is_tied = tied[:, None, :, None]
            tied_kernels = jnp.where(is_tied, kernels[..., attacks:], 0.0)
            new_kernels = jnp.where(is_tied, 0.0, kernels[..., :-sustains])
            at_start = jnp.where(tied[..., None], spectra[:, :, -sustains], 0.0).sum(1)
            tied_magnitude = _weighted_sum(tied_kernels, spectra[:, :, attacks:]) + jnp.exp(LOG_FLOOR)
            new_magnitude = _weighted_sum(new_kernels, spectra[:, :, :-sustains])
            end, known = _end_of_context(context, context_mask)
            log_factor = jnp.where(known, end - jnp.log(at_start + jnp.exp(LOG_FLOOR)), 0.0)
            since = _triangular(jnp.arange(kernels.shape[1], dtype=jnp.float32), _SINCE_BORDER, hold_last=False)
            factor = jnp.exp((since @ self.continuation[...]) * log_factor[:, None])
            magnitude = tied_magnitude * factor + new_magnitude
        scaled = 2.0 * (jnp.log(magnitude) - LOG_FLOOR) / (LOG_CEILING - LOG_FLOOR) - 1.0
        return (scaled - self.mean) / self.std


def _weighted_sum(kernels: Float[Array, "b t n k"], spectra: Float[Array, "b n k m"]) -> Float[Array, "b t m"]:
    """Returns the spectra weighted by the kernels, summed over notes and phases, as one matrix product per window."""
    return kernels.reshape(*kernels.shape[:2], -1) @ spectra.reshape(len(spectra), -1, spectra.shape[-1])


def _end_of_context(
    context: Float[Array, "b c m"], context_mask: Bool[Array, "b c"]
) -> tuple[Float[Array, "b m"], Bool[Array, "b 1"]]:
    """Returns the mean of the last frames of the context, as unscaled log magnitudes, and whether it has frames."""
    length = context_mask.sum(-1, keepdims=True)
    age = length - 1 - jnp.arange(context.shape[1])  # 0 for the last valid frame
    weight = ((age >= 0) & (age < _BORDER_FRAMES)) / jnp.clip(length, 1, _BORDER_FRAMES)
    scaled = (weight[..., None] * context).sum(1)
    return (scaled + 1.0) / 2.0 * (LOG_CEILING - LOG_FLOOR) + LOG_FLOOR, length > 0
