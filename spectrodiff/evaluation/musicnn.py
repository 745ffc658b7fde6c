"""Musicnn (Pons & Serra 2019), a convolutional network that tags music, as an embedding: in JAX, weights included.

It was trained on MagnaTagATune, 25,000 clips with 50 tags. The architecture and the weights are those of the authors'
package musicnn 0.1.0, see weights/musicnn/README.md. The last layer, which makes tags of the embedding, is left out;
its weights, `tags.kernel` and `tags.bias`, are in the file but not used.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array, Float
from safetensors.numpy import load_file

from spectrodiff.audio.mel import SAMPLE_RATE, hann

HOP = 256
FFT_SIZE = 512
MEL_BINS = 96
PATCH = 187  # mel frames of the network's input: 3 s
_WEIGHTS = pathlib.Path(__file__).parent / "weights" / "musicnn" / "musicnn.safetensors"
_BATCH = 4  # patches
_NTC = ("NTC", "TIO", "NTC")

Weights = dict[str, Float[Array | np.ndarray, "..."]]


class Musicnn:
    """An embedding of audio at `rate` Hz: the activations of the last layer before the tags, of patches of 3 s.

    There is a patch every `hop` seconds. By default patches overlap by half, which gives twice as many frames for a
    covariance of 200 dimensions; those of the authors' code do not overlap. Audio of less than 3 s is padded with
    silence; of longer audio, an end that does not fill a patch is left out.
    """

    name = identity = "musicnn"
    rate = SAMPLE_RATE
    dims = 200
    licence = "ISC"

    def __init__(self, step: int = PATCH // 2 + 1):
        """Reads the weights; `step` is the number of mel frames from patch to patch."""
        self.step, self.hop = step, step * HOP / SAMPLE_RATE
        self._weights = _weights()

    def __call__(self, audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "n 200"]:
        """Returns the embeddings of audio at `rate` Hz; see `Embedding`."""
        mel = loudness_mel(audio)
        mel = np.pad(mel, ((0, max(0, PATCH - len(mel))), (0, 0)))
        patches = np.lib.stride_tricks.sliding_window_view(mel, PATCH, axis=0)[:: self.step].swapaxes(1, 2)
        features = []
        for start in range(0, len(patches), _BATCH):
            kept = min(_BATCH, len(patches) - start)
            batch = np.pad(patches[start : start + _BATCH], ((0, _BATCH - kept), (0, 0), (0, 0)))
            with jax.default_matmul_precision("highest"):  # a figure should not depend on the device
                output = network(self._weights, batch)
            features.append(np.asarray(output)[:kept])
        return np.concatenate(features)


@functools.cache
def _weights() -> Weights:
    return load_file(_WEIGHTS)


def loudness_mel(audio: Float[np.ndarray, " s"]) -> Float[np.ndarray, "t 96"]:
    """Computes log10(1 + 10^4 x) of a power mel spectrogram x, whose frame i is centred on sample HOP * i.

    All is in float32. The authors' code rounds x to float16, which overflows for sounds louder than a sine of
    amplitude 0.1 or so.
    """
    padded = np.pad(audio, FFT_SIZE // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT_SIZE)[::HOP]
    spectrum = scipy.fft.rfft(frames * hann(FFT_SIZE).astype(np.float32))
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.log10(1.0 + 1e4 * (power @ area_mel_matrix().astype(np.float32)))


@functools.cache
def area_mel_matrix(
    mel_bins: int = MEL_BINS,
    fft_size: int = FFT_SIZE,
    rate: int = SAMPLE_RATE,
    lowest: float = 0.0,
    highest: float = SAMPLE_RATE / 2,
) -> Float[np.ndarray, "f m"]:
    """Returns the weights that map powers of an FFT to mel bins: triangles of equal area on Slaney's mel scale.

    `rate`, `lowest` and `highest` are in Hz. The scale is linear up to 1000 Hz, which is 15 mels, and logarithmic
    above, with 27 mels to a factor of 6.4 (Slaney 1998).
    """
    linear, corner, ratio = 200 / 3, 1000.0, 6.4 ** (1 / 27)
    first, last = (
        hz / linear if hz < corner else corner / linear + np.log(hz / corner) / np.log(ratio)
        for hz in (lowest, highest)
    )
    mels = np.linspace(first, last, mel_bins + 2)
    edges = np.where(mels < corner / linear, mels * linear, corner * ratio ** (mels - corner / linear))
    bins = np.linspace(0.0, rate / 2, fft_size // 2 + 1)[:, None]
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0.0, np.minimum((bins - lower) / (centre - lower), (upper - bins) / (upper - centre)))
    return triangles * 2.0 / (upper - lower)


@jax.jit
def network(weights: Weights, mel: Float[Array | np.ndarray, "b t 96"]) -> Float[Array, "b 200"]:
    """Returns the activations of the last layer before the tags, for patches of mel.

    The first layer has convolutions over 0.4 and 0.7 of the bins, for timbre, and over 128, 64 and 32 frames, for
    rhythm. Each is followed by a maximum over bins. Convolutions over time follow, and then the mean and the maximum
    over time of all layers.
    """
    x = mel * weights["input.scale"] + weights["input.shift"]
    b, t, bins = x.shape
    features = []
    for layer in ("timbral.0", "timbral.1"):
        kernel = weights[f"{layer}.kernel"]
        y = jax.lax.conv_general_dilated(
            x[..., None], kernel, (1, 1), [(3, 3), (0, 0)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        features.append(_activated(weights, layer, y).max(axis=2))
    each_bin = x.swapaxes(1, 2).reshape(b * bins, t, 1)
    for layer in ("temporal.0", "temporal.1", "temporal.2"):
        kernel = weights[f"{layer}.kernel"][:, None]
        y = jax.lax.conv_general_dilated(each_bin, kernel, (1,), "SAME", dimension_numbers=_NTC)
        features.append(_activated(weights, layer, y).reshape(b, bins, t, -1).max(axis=1))

    layers = [jnp.concatenate(features, axis=-1)]
    for layer in ("middle.0", "middle.1", "middle.2"):
        kernel = weights[f"{layer}.kernel"]
        y = jax.lax.conv_general_dilated(layers[-1], kernel, (1,), [(3, 3)], dimension_numbers=_NTC)
        y = _activated(weights, layer, y)
        layers.append(y if len(layers) == 1 else y + layers[-1])

    h = jnp.concatenate(layers, axis=-1)
    pooled = jnp.stack([h.max(axis=1), h.mean(axis=1)], axis=-1).reshape(b, -1)
    pooled = pooled * weights["pooled.scale"] + weights["pooled.shift"]
    return _activated(weights, "penultimate", pooled @ weights["penultimate.kernel"])


def _activated(weights: Weights, layer: str, y: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Applies ReLU and then batch normalisation with the statistics of training."""
    return jax.nn.relu(y + weights[f"{layer}.bias"]) * weights[f"{layer}.scale"] + weights[f"{layer}.shift"]
