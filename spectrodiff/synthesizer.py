"""MIDI in, music out: log-mels as they are sampled, made audible as they come."""

import importlib.util
import os
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.spectrogram_model import SpectrogramConfig, SpectrogramModel
from spectrodiff.notes.midi import Notes, read_midi
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import Checkpoint, open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.vocoders import find_vocoder, trained_vocoder
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.streaming import Vocoder


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
      mel_sampler: what samples log-mels from the model; it can be had without a vocoder as well.
      vocoder: unscaled log-mel [t, 128] to audio [t * 320].
    """

    def __init__(self, model: SpectrogramModel, config: SpectrogramConfig, vocoder: Vocoder | None = None):
        self.mel_sampler = MelSampler(model, config)
        self.vocoder = GriffinLim() if vocoder is None else vocoder

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

    @property
    def model(self) -> SpectrogramModel:
        """The network; `model(tokens, context, context_mask, z, logsnr)` is one evaluation."""
        return self.mel_sampler.model

    @property
    def config(self) -> SpectrogramConfig:
        """What the model is, and how it is best sampled."""
        return self.mel_sampler.config

    @property
    def tokenizer(self) -> NoteTokenizer:
        """The notes-to-tokens half that goes with the model."""
        return self.mel_sampler.tokenizer

    def __call__(self, midi: str | os.PathLike | Notes, **options) -> Float[np.ndarray, " s"]:
        """Audio of a piece, float32 at 16 kHz. Takes the options of `mels`."""
        return np.concatenate(list(self.stream(midi, **options)))

    def stream(self, midi: str | os.PathLike | Notes, **options) -> Iterator[Float[np.ndarray, " s"]]:
        """Yields the very audio that calling returns, piece by piece, while the rest is still to be rendered."""
        yield from self.vocoder.stream(self.mels(midi, **options))

    def mels(
        self, midi: str | os.PathLike | Notes, *, seed: int = 0, progress: bool = False, **sampling
    ) -> Iterator[Float[np.ndarray, "t m"]]:
        """The unscaled log-mels of a piece, a window of at most 5.12 s at a time; the same `seed` gives the same again.

        `sampling` is `steps`, `sampler` and `guidance` of a diffusion decoder, or `dither` of an autoregressive one;
        what is not given is what `config` recommends.

        Raises:
          InputError: the file is not usable MIDI, a window has too many notes, or an option is out of range.
        """
        self.mel_sampler.sampling(**sampling)  # before a long file is read
        volume = self.config.tokenizer.channel_volume
        notes = midi if isinstance(midi, Notes) else read_midi(midi, channel_volume=volume)
        return self.mel_sampler.stream(notes, seed=seed, progress=progress, **sampling)
