"""Embeddings of audio: networks' features, between whose distributions evaluation measures distances.

Musicnn comes with this package. VGGish and TRILL, which the paper evaluates with, are read from the SavedModels that
their authors publish, and CLAP from an ONNX file.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.signal
from jaxtyping import Float

from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.errors import InputError, reason
from spectrodiff.evaluation.clap import Clap
from spectrodiff.evaluation.downloads import fetched
from spectrodiff.evaluation.musicnn import Musicnn
from spectrodiff.vocoder.saved_model import fingerprint_of_model, load_model

Audio = Float[np.ndarray, " s"]


@runtime_checkable
class Embedding(Protocol):
    """A model that maps audio, float32 [samples] at `rate` Hz, to embeddings [n, dims], one every `hop` seconds.

    `licence` is that of the model's weights. `identity` differs between models of the same name with other weights.
    """

    name: str
    identity: str
    rate: int
    hop: float
    dims: int
    licence: str

    def __call__(self, audio: Audio) -> Float[np.ndarray, "n d"]: ...


@dataclasses.dataclass(frozen=True)
class Published:
    """The description of a published model.

    Its embeddings have `dims` dimensions, and are `hop` seconds apart. `call(model, audio)` runs the loaded `model` on
    float32 [samples] at SAMPLE_RATE.
    """

    name: str
    hop: float
    dims: int
    licence: str
    call: Callable[[Callable, Audio], object]


def _trill(model: Callable, audio: Audio) -> object:
    outputs = model(samples=audio, sample_rate=SAMPLE_RATE)
    return outputs["embedding"] if isinstance(outputs, Mapping) else None


PUBLISHED = {
    "vggish": Published("vggish", 0.96, 128, "Apache-2.0", lambda model, audio: model(audio)),  # Hershey et al. 2017
    "trill": Published("trill", 0.167, 512, "Apache-2.0", _trill),  # Shor et al. 2020
}


class SavedModelEmbedding:
    """VGGish or TRILL, run by TensorFlow on the CPU. Audio is padded with silence to whole seconds, as in the paper."""

    rate = SAMPLE_RATE

    def __init__(self, path: str | os.PathLike, published: Published):
        """Loads the SavedModel in the folder at `path`.

        Raises:
          InputError: there is no such SavedModel, or it is not the `published` model; or TensorFlow is not installed.
        """
        self.name, self.hop = published.name, published.hop
        self.dims, self.licence = published.dims, published.licence
        self.path, self._call, self._model = path, published.call, load_model(path, f"{published.name} model")
        self.identity = fingerprint_of_model(path)
        self(np.zeros(SAMPLE_RATE, np.float32))

    def __call__(self, audio: Audio) -> Float[np.ndarray, "n d"]:
        """Returns the embeddings of audio; see `Embedding`."""
        seconds = max(1, math.ceil(len(audio) / SAMPLE_RATE))
        padded = np.pad(audio.astype(np.float32), (0, seconds * SAMPLE_RATE - len(audio)))
        try:
            frames = np.asarray(self._call(self._model, padded), np.float32)
        except Exception as error:  # TensorFlow's, which share no class
            raise InputError(f"{self.path} is no {self.name} model: {reason(error)}") from error
        if frames.ndim != 2 or frames.shape[1] != self.dims:
            raise InputError(
                f"{self.path} is no {self.name} model: its output for {len(padded)} samples is {list(frames.shape)}, "
                f"not [frames, {self.dims}]"
            )
        return frames


def find_embedding(name: str) -> Embedding:
    """Loads the embedding of a name: `musicnn`, `vggish=SOURCE`, `trill=SOURCE` or `clap=SOURCE`.

    SOURCE is the folder of an unpacked SavedModel, or the address of one as .tar.gz; for clap, an ONNX file or its
    address.

    Raises:
      InputError: the name is none of these, or the model cannot be downloaded or read.
    """
    model, _, source = name.partition("=")
    if name == Musicnn.name:
        return Musicnn()
    if model in PUBLISHED and source:
        return SavedModelEmbedding(fetched(source), PUBLISHED[model])
    if model == Clap.name and source:
        return Clap(fetched(source))
    known = ", ".join(f"{model}=FOLDER" for model in PUBLISHED)
    raise InputError(
        f"no embedding {name!r}: give {Musicnn.name}, or one of {known}, of an unpacked SavedModel, or {Clap.name}=FILE"
    )


def resample(audio: Audio, rate: int) -> Float[np.ndarray, " r"]:
    """Resamples audio from SAMPLE_RATE to another rate, in Hz."""
    common = math.gcd(rate, SAMPLE_RATE)
    return scipy.signal.resample_poly(audio, rate // common, SAMPLE_RATE // common).astype(np.float32)
