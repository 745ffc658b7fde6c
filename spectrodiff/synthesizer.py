"""MIDI in, music out: windows in order, each hearing the one before, made audible as they come."""

import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int32
from tqdm import tqdm

from spectrodiff.audio.mel import FRAMES_PER_SECOND, MEL_BINS, unscale_mel
from spectrodiff.config import WINDOW_FRAMES, SamplingConfig, SpectrogramConfig, from_dict, to_dict
from spectrodiff.diffusion.samplers import STEPS
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.midi import Notes, read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import Checkpoint, open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.vocoders import find_vocoder, trained_vocoder
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.streaming import Vocoder

_BUCKETS = (512, 1024)  # lengths that token windows are padded to, besides the longest: one compiled program each
RING_OUT = 1.0  # seconds kept after the last note's end, as far as the published windows reach
MAX_SEEDS = 2**32


def _vocoder_of(checkpoint: Checkpoint) -> Vocoder:
    """The vocoder that lies with the weights, where it can be played, else Griffin-Lim."""
    if (trained := trained_vocoder(checkpoint.folder)) is not None:
        return trained
    if checkpoint.onnx_vocoder is not None:
        if importlib.util.find_spec("onnxruntime"):
            return OnnxVocoder(checkpoint.onnx_vocoder)
        needed = 'needs pip install "spectrodiff[onnx]"; Griffin-Lim plays instead'
        warnings.warn(f"{checkpoint.onnx_vocoder} {needed}", stacklevel=3)
    return GriffinLim()


class Synthesizer:
    """A spectrogram model and a vocoder, played together.

    Attributes:
      model: the network; `model(tokens, context, context_mask, z, logsnr)` is one evaluation.
      config: what the model is, and how it is best sampled.
      tokenizer: the notes-to-tokens half that goes with the model.
      vocoder: unscaled log-mel [t, 128] to audio [t * 320].
    """

    def __init__(self, model: SpectrogramModel, config: SpectrogramConfig, vocoder: Vocoder | None = None):
        self.model, self.config = model, config
        self.tokenizer = NoteTokenizer(config.tokenizer)
        self.vocoder = GriffinLim() if vocoder is None else vocoder
        graph, *self._weights = nnx.split(model)
        self._sample_window = window_sampler(graph, config.diffusion)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike = "demo", vocoder: str | os.PathLike | None = None
    ) -> "Synthesizer":
        """The synthesizer of a checkpoint: a name, `hf://owner/name`, or a folder (ours, diffusers' or T5X's).

        `vocoder` is what `find_vocoder` knows by name or path. Without it, it is what lies with the weights, one
        of ours or the published one (which needs onnxruntime), else Griffin-Lim alone.

        Raises:
          InputError: there is no such checkpoint or vocoder, or it cannot be read.
        """
        chosen = None if vocoder is None else find_vocoder(vocoder)
        found = open_checkpoint(find_checkpoint(checkpoint))
        return cls(found.build(), found.config, _vocoder_of(found) if chosen is None else chosen)

    def __call__(self, midi: str | os.PathLike | Notes, **options) -> Float[np.ndarray, " s"]:
        """Audio of a piece, float32 at 16 kHz. Takes the options of `mels`."""
        return np.concatenate(list(self.stream(midi, **options)))

    def stream(self, midi: str | os.PathLike | Notes, **options) -> Iterator[Float[np.ndarray, " s"]]:
        """Yields the very audio that calling returns, piece by piece, while the rest is still to be rendered."""
        yield from self.vocoder.stream(self.mels(midi, **options))

    def mels(
        self,
        midi: str | os.PathLike | Notes,
        *,
        steps: int | None = None,
        sampler: str | None = None,
        guidance: float | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Iterator[Float[np.ndarray, "t m"]]:
        """Yields unscaled log-mels, a window of at most 5.12 s at a time.

        Options not given are those that `config.sampling` recommends. The same `seed` gives the same mels again.

        Raises:
          InputError: the file is not usable MIDI, a window has too many notes, or an option is out of range.
        """
        sampler, steps, guidance = self.check_sampling(sampler, steps, guidance, seed)
        notes = midi if isinstance(midi, Notes) else read_midi(midi)
        frames_left = int(np.ceil((notes.total_time + RING_OUT) * FRAMES_PER_SECOND))
        if not self.config.tokenizer.ghost_ties:  # else a window after the last note would hold notes
            notes = dataclasses.replace(notes, total_time=notes.total_time + RING_OUT)
        windows = self.tokenizer.encode(notes)
        key = jax.random.key(seed)
        context = jnp.zeros((1, WINDOW_FRAMES, MEL_BINS))
        context_mask = jnp.zeros((1, WINDOW_FRAMES), bool)  # nothing comes before the first window
        for index, tokens in enumerate(tqdm(windows, desc="synthesizing", unit="window", disable=not progress)):
            context = self.sample_windows(
                self._bucketed(tokens)[None],
                context,
                context_mask,
                jax.random.fold_in(key, index),
                sampler=sampler,
                steps=steps,
                guidance=guidance,
            )
            context_mask = jnp.ones_like(context_mask)
            yield np.asarray(unscale_mel(context[0]))[:frames_left]
            frames_left -= WINDOW_FRAMES

    def sample_windows(
        self,
        tokens: Int32[Array | np.ndarray, "b n"],
        context: Float[Array | np.ndarray, "b t m"],
        context_mask: Bool[Array | np.ndarray, "b t"],
        key: jax.Array,
        *,
        sampler: str,
        steps: int,
        guidance: float,
    ) -> Float[jax.Array, "b t m"]:
        """Scaled log-mels of windows of tokens, each after its own context, scaled too: what `mels` is made of."""
        return self._sample_window(
            *(self._weights, tokens, context, context_mask, key), step=STEPS[sampler], steps=steps, guidance=guidance
        )

    def check_sampling(
        self, sampler: str | None, steps: int | None, guidance: float | None, seed: int
    ) -> tuple[str, int, float]:
        """Sampler, steps and guidance of `mels` with these options; raises InputError where one is out of range."""
        options = {"sampler": sampler, "steps": steps, "guidance": guidance}
        given = {name: value for name, value in options.items() if value is not None}
        chosen = from_dict(SamplingConfig, to_dict(self.config.sampling) | given, "options")
        if not 0 <= seed < MAX_SEEDS:
            raise InputError(f"seed is {seed}; choose 0 to {MAX_SEEDS - 1}")
        return chosen.sampler, chosen.steps, float(chosen.guidance)

    def _bucketed(self, tokens: Int32[np.ndarray, " n"]) -> Int32[np.ndarray, " bucket"]:
        """A window's tokens, padded to its bucket: a longer one than usual where compact notes need the room."""
        model, limit = self.config.model, self.config.tokenizer.max_tokens
        needed = np.count_nonzero(tokens)
        if model.compact_notes:
            needed = max(needed, self.tokenizer.vocabulary.count_notes(tokens) * model.tokens_per_note)
        bucket = next((size for size in _BUCKETS if needed <= size <= limit), -(-needed // limit) * limit)
        return np.pad(tokens, (0, max(0, bucket - limit)))[:bucket]
