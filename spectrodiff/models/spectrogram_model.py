"""Notes and context in, denoised spectrogram out: the three stacks as one network."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.config import SpectrogramConfig
from spectrodiff.models.context_encoder import ContextEncoder
from spectrodiff.models.diffusion_decoder import DiffusionDecoder, Memory
from spectrodiff.models.note_encoder import NoteEncoder
from spectrodiff.models.note_roll import NoteRoll, roll_kernels
from spectrodiff.notes.vocabulary import Vocabulary


class Conditioning(NamedTuple):
    """What a window is conditioned on, encoded: notes, then context frames, with a mask over both."""

    memory: Float[Array, "b n d"]
    mask: Bool[Array, "b n"]
    sketch: Float[Array, "b t m"] | None  # the note roll's

    def keep(self, kept: Bool[Array, "b"]) -> "Conditioning":
        """Empties the examples that are not kept: condition dropout and guidance both mean just this."""
        sketch = None if self.sketch is None else jnp.where(kept[:, None, None], self.sketch, 0.0)
        return Conditioning(self.memory, self.mask & kept[:, None], sketch)

    def with_unconditional(self) -> "Conditioning":
        """[itself; itself emptied] along the batch, for classifier-free guidance."""
        empty = self.keep(jnp.zeros(self.mask.shape[0], bool))
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), self, empty)


class SpectrogramModel(nnx.Module):
    """The network of Hawthorne et al. (2022), with our options where the config turns them on."""

    def __init__(self, cfg: SpectrogramConfig, *, rngs: nnx.Rngs):
        vocabulary = Vocabulary(cfg.tokenizer.velocity_bins)
        self.note_encoder = NoteEncoder(cfg.model, vocabulary, rngs=rngs)
        self.context_encoder = ContextEncoder(cfg.model, rngs=rngs) if cfg.model.with_context else None
        self.decoder = DiffusionDecoder(cfg.model, rngs=rngs)
        self.note_roll = NoteRoll(cfg.model, cfg.diffusion, rngs=rngs) if cfg.model.note_roll else None

    def encode(
        self,
        tokens: Int[Array, "b n"],
        context: Float[Array, "b c m"],
        context_mask: Bool[Array, "b c"],
        frames: int,
        rngs: nnx.Rngs | None = None,
    ) -> Conditioning:
        """Encodes notes and context (scaled log-mel, real frames first) for a window of `frames` frames."""
        memory, mask, notes = self.note_encoder(tokens, rngs)
        sketch = None
        if self.note_roll is not None:
            kernels = jax.vmap(lambda row: roll_kernels(row, frames))(notes)
            sketch = self.note_roll(memory, kernels)
        if self.context_encoder is not None:
            memory = jnp.concatenate([memory, self.context_encoder(context, context_mask, rngs)], 1)
            mask = jnp.concatenate([mask, context_mask], 1)
        return Conditioning(memory, mask, sketch)

    def remember(self, conditioning: Conditioning) -> Memory:
        """The decoder's memory of `conditioning`: compute it once a window."""
        return self.decoder.remember(*conditioning)

    def __call__(
        self,
        tokens: Int[Array, "b n"],
        context: Float[Array, "b c m"],
        context_mask: Bool[Array, "b c"],
        z: Float[Array, "b t m"],
        logsnr: Float[Array, "b"],
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t m"]:
        """The whole network in one call: what the objective has it predict (the paper: eps) for the noisy `z`."""
        conditioning = self.encode(tokens, context, context_mask, z.shape[1], rngs)
        return self.decoder(z, logsnr, self.remember(conditioning), rngs)
