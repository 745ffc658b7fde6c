"""The spectrogram model: encoders of notes and context, and a decoder that generates the log-mel of a window."""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from spectrodiff.config import ModelConfig, TokenizerConfig
from spectrodiff.models import autoregressive_decoder, texture_decoder  # noqa: F401 (registers their configs)
from spectrodiff.models.context_encoder import ContextEncoder
from spectrodiff.models.decoder import Conditioning, DecoderConfig
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.note_encoder import NoteEncoder
from spectrodiff.models.note_roll import NoteRoll, roll_kernels
from spectrodiff.notes.vocabulary import Vocabulary


@gin.register
@dataclasses.dataclass(frozen=True)
class SpectrogramConfig:
    """The config that is stored with the weights of a spectrogram model: tokenizer, networks and decoder."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    decoder: DecoderConfig = DiffusionConfig()


class SpectrogramModel(nnx.Module):
    """The network of Hawthorne et al. (2022), with the extensions that `ModelConfig` enables."""

    def __init__(self, cfg: SpectrogramConfig, *, rngs: nnx.Rngs):
        vocabulary = Vocabulary(cfg.tokenizer.velocity_bins)
        self.note_encoder = NoteEncoder(cfg.model, vocabulary, rngs=rngs)
        self.context_encoder = ContextEncoder(cfg.model, rngs=rngs) if cfg.model.with_context else None
        self.decoder = cfg.decoder.build(cfg.model, rngs=rngs)
        mean, std = cfg.decoder.mean, cfg.decoder.std
        self.note_roll = NoteRoll(cfg.model, mean, std, rngs=rngs) if cfg.model.note_roll else None
        self.roll_release = cfg.model.roll_release

    def encode(
        self,
        tokens: Int[Array, "b n"],
        context: Float[Array, "b c m"],
        context_mask: Bool[Array, "b c"],
        frames: int,
        rngs: nnx.Rngs | None = None,
    ) -> Conditioning:
        """Encodes the tokens and the context of windows of `frames` frames.

        `context` is a scaled log-mel, whose valid frames come first and are those where `context_mask` is true. `rngs`
        draws dropout, which is disabled if it is None.
        """
        encoded, mask, notes = self.note_encoder(tokens, rngs)
        sketch = None
        if self.note_roll is not None:
            kernels = jax.vmap(lambda row: roll_kernels(row, frames, self.roll_release))(notes)
            sketch = self.note_roll(encoded, kernels, jnp.isneginf(notes.onset), context, context_mask)
        if self.context_encoder is not None:
            encoded = jnp.concatenate([encoded, self.context_encoder(context, context_mask, rngs)], 1)
            mask = jnp.concatenate([mask, context_mask], 1)
        return Conditioning(encoded, mask, sketch, context, context_mask)

    def __call__(
        self,
        tokens: Int[Array | np.ndarray, "b n"],
        context: Float[Array, "b c m"],
        context_mask: Bool[Array, "b c"],
        mel: Float[Array, "b t m"],
        *inputs: Array,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "b t o"]:
        """Evaluates encoders and decoder once, and returns the output of the decoder.

        `tokens`, `context` and `context_mask` are those of `encode`, and `rngs` draws dropout.

        For a diffusion decoder, `mel` is the network's input as `Objective.inputs` computes it from a noisy z (except
        for `Preconditioned`, it is z), where z is of log-mels normalised by the mean and std of the decoder's config.
        `inputs` is the log-SNR of z, a scalar or [b]. The output is the quantity that the objective predicts (in the
        paper: eps). For an autoregressive decoder, `mel` is the target, there are no `inputs`, and the output at each
        frame is computed from the frames before it.
        """
        cache = self.decoder.cache(self.encode(jnp.asarray(tokens), context, context_mask, mel.shape[1], rngs))
        return self.decoder(cache, mel, *inputs, rngs=rngs)
