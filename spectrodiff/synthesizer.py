"""The synthesizer: MIDI to audio, by a spectrogram model and a vocoder."""

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
    """Returns the vocoder in the checkpoint's folder if there is one that can be used, else Griffin-Lim."""
    if (trained := trained_vocoder(checkpoint.folder)) is not None:
        return trained
    if checkpoint.onnx_vocoder is not None:
        if importlib.util.find_spec("onnxruntime"):
            return OnnxVocoder(checkpoint.onnx_vocoder)
        needed = 'needs pip install "spectrodiff[onnx]"; Griffin-Lim plays instead'
        warnings.warn(f"{checkpoint.onnx_vocoder} {needed}", stacklevel=3)
    return GriffinLim()


class Synthesizer:
    """Converts MIDI to audio with a spectrogram model and a vocoder.

    `model` and `config` are a spectrogram model and its config. `vocoder` is anything like a `Vocoder`, and Griffin-Lim
    by default.

    Attributes:
      mel_sampler: the `MelSampler` of the model, which can also be used without a vocoder.
      vocoder: maps an unscaled log-mel [frames, 128] to audio [frames * 320] at 16 kHz.
    """

    def __init__(self, model: SpectrogramModel, config: SpectrogramConfig, vocoder: Vocoder | None = None):
        self.mel_sampler = MelSampler(model, config)
        self.vocoder = GriffinLim() if vocoder is None else vocoder

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike = "demo", vocoder: str | os.PathLike | None = None
    ) -> "Synthesizer":
        """Loads a checkpoint: a name, `hf://owner/name`, or a folder in this package's, diffusers' or T5X's format.

        `vocoder` is a name or path that `find_vocoder` accepts. By default it is the vocoder in the checkpoint's
        folder, if there is one and (for the published one) onnxruntime is installed, else Griffin-Lim.

        Raises:
          InputError: the checkpoint or the vocoder does not exist or cannot be read.
        """
        chosen = None if vocoder is None else find_vocoder(vocoder)
        found = open_checkpoint(find_checkpoint(checkpoint))
        return cls(found.build(), found.config, _vocoder_of(found) if chosen is None else chosen)

    @property
    def model(self) -> SpectrogramModel:
        """The network, which `model(tokens, context, context_mask, z, logsnr)` evaluates once."""
        return self.mel_sampler.model

    @property
    def config(self) -> SpectrogramConfig:
        """The config of the model, including its default sampling options."""
        return self.mel_sampler.config

    @property
    def tokenizer(self) -> NoteTokenizer:
        """The tokenizer that the model was trained with."""
        return self.mel_sampler.tokenizer

    def __call__(self, midi: str | os.PathLike | Notes, **options) -> Float[np.ndarray, " s"]:
        """Returns the audio of a piece, float32 [samples] at 16 kHz, as the model made it: its level is not adjusted.

        `midi` is the path of a MIDI file, or notes as `read_midi` returns them. The audio lasts a second longer than
        the notes or, with the tokenizer of the published weights, to the end of their last window if that is sooner.
        The options are those of `mels`.

        Raises:
          InputError: as `mels`.
        """
        return np.concatenate(list(self.stream(midi, **options)))

    def stream(self, midi: str | os.PathLike | Notes, **options) -> Iterator[Float[np.ndarray, " s"]]:
        """Yields the audio of a piece, float32 [samples] at 16 kHz, in chunks of a few seconds as they are rendered.

        Concatenated, the chunks equal the result of a call with the same arguments.

        Raises:
          InputError: as `mels`, when the first chunk is asked for.
        """
        yield from self.vocoder.stream(self.mels(midi, **options))

    def mels(
        self, midi: str | os.PathLike | Notes, *, seed: int = 0, progress: bool = False, **sampling
    ) -> Iterator[Float[np.ndarray, "t m"]]:
        """Yields the unscaled log-mel of a piece, float32 [frames, 128] in nats, in windows of at most 256 frames.

        There are 50 frames a second. `midi` is the path of a MIDI file, or notes. The same `seed`, an integer from 0 to
        2^32 - 1, gives the same mel. `progress` shows a progress bar. `sampling` are the options of the decoder:
        `steps` and `sampler` of texture and diffusion decoders, `tone_temperature` of the former, `guidance` of the
        latter, `dither` of an autoregressive one, and `overlap` of all, the number of frames that windows overlap.
        Missing options have the defaults of `config`.

        Raises:
          InputError: the file is not usable MIDI, a window has too many notes, or an option or the seed is out of range
            or of another type.
        """
        self.mel_sampler.sampling(**sampling)  # raises before a long file is read
        volume = self.config.tokenizer.channel_volume
        notes = midi if isinstance(midi, Notes) else read_midi(midi, channel_volume=volume)
        return self.mel_sampler.stream(notes, seed=seed, progress=progress, **sampling)
