"""The note encoder, which encodes the note tokens of a window."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.config import WINDOW_FRAMES, ModelConfig
from spectrodiff.models.layers import Encoder, Positions
from spectrodiff.models.note_events import STEPS_PER_FRAME, NoteEvents, event_frames, read_notes
from spectrodiff.notes.vocabulary import PAD, Vocabulary

_embedding_init = nnx.initializers.normal(1.0)


class NoteEncoder(nnx.Module):
    """A transformer encoder of note tokens; see `ModelConfig` for its options.

    The paper's encoder adds a position embedding to the embedding of each token. With `event_times`, the embedding of
    the token's time on the decoder's frame axis is added too.

    With `compact_notes`, the sequence has one position per note instead of one per token. A note is embedded as the sum
    of the embeddings of its pitch, program, velocity, onset and offset. Onset and offset have the embeddings of their
    shift tokens or, with `event_times`, position embeddings on the decoder's frame axis.
    """

    def __init__(self, cfg: ModelConfig, vocabulary: Vocabulary, *, rngs: nnx.Rngs):
        self.vocabulary = vocabulary
        self.dtype = cfg.dtype
        self.compact = cfg.compact_notes
        self.tokens_per_note = cfg.tokens_per_note
        self.event_times = cfg.event_times
        self.mask_padding, self.max_tokens = cfg.mask_padding, cfg.max_tokens
        self.embedding = nnx.Embed(cfg.vocabulary_rows, cfg.width, embedding_init=_embedding_init, rngs=rngs)
        if not cfg.compact_notes:
            self.positions = Positions(cfg.max_tokens, cfg.width, rngs=rngs)
        if cfg.event_times:
            self.onset_positions = Positions(WINDOW_FRAMES + 1, cfg.width, rngs=rngs)
            if cfg.compact_notes:
                self.offset_positions = Positions(WINDOW_FRAMES + 1, cfg.width, rngs=rngs)
        self.encoder = Encoder(cfg, cfg.note_layers, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "b n"], rngs: nnx.Rngs | None = None
    ) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"], NoteEvents | None]:
        """Returns the encoder output, its mask, and the notes at its positions (None unless `compact_notes`)."""
        # Padding that is not masked affects the output, so that its amount must not vary with the batch.
        if not self.mask_padding and (missing := self.max_tokens - tokens.shape[1]) > 0:
            tokens = jnp.pad(tokens, ((0, 0), (0, missing)))
        if self.compact:
            max_notes = tokens.shape[1] // self.tokens_per_note
            notes = jax.vmap(lambda row: read_notes(row, self.vocabulary, max_notes))(tokens)
            return self._encode(self._embed(notes), notes.valid, rngs), notes.valid, notes
        x = self.embedding(tokens) + self.positions(tokens.shape[1])
        if self.event_times:
            x += self.onset_positions.at(jax.vmap(lambda row: event_frames(row, self.vocabulary))(tokens))
        mask = tokens > PAD
        return self._encode(x, mask, rngs), mask, None

    def _encode(self, x, mask, rngs):
        visible = mask if self.mask_padding else jnp.ones_like(mask)
        return self.encoder(x.astype(self.dtype), visible, rngs)

    def _embed(self, notes: NoteEvents) -> Float[Array, "b m d"]:
        x = self.embedding(notes.pitch) + self.embedding(notes.program) + self.embedding(notes.velocity)
        if self.event_times:
            return x + self.onset_positions.at(notes.onset) + self.offset_positions.at(notes.offset)
        onset, offset = self._shift_tokens(notes.onset), self._shift_tokens(notes.offset)
        return x + self.embedding(onset) + self.embedding(offset)

    def _shift_tokens(self, frames: Float[Array, "b m"]) -> Int[Array, "b m"]:
        """Returns the shift tokens of times in frames, or 0 for times that are not finite."""
        steps = jnp.clip(
            jnp.where(jnp.isfinite(frames), STEPS_PER_FRAME * frames, 0), 0, STEPS_PER_FRAME * WINDOW_FRAMES
        ).astype(jnp.int32)
        return jnp.where(jnp.isfinite(frames), self.vocabulary.shift_start + steps, 0)
