"""The MelGAN generator (Kumar et al. 2019): a convolutional network from log-mels to audio."""

import dataclasses
import math
from collections.abc import Sequence

import flax.nnx as nnx
import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spectrodiff.audio.mel import HOP, LOG_FLOOR, MEL_BINS, scale_mel
from spectrodiff.config import MAX_SIZE, check_choice, check_whole, is_whole
from spectrodiff.errors import InputError
from spectrodiff.vocoder.layers import Conv, leaky

GRIFFIN_LIM = "griffin_lim"
EXCITATIONS = ("none", "noise", GRIFFIN_LIM)
EDGE_KERNEL = 7  # of the first and last convolutions
KERNEL = 3  # of the dilated convolutions
_FADE = 2.0  # nats above silence up to which a frame is attenuated
_FULL_SCALE = 160.0  # the STFT magnitude of a sine of amplitude 1
_CLIP = 8.0  # times the level of the mel, above which Griffin-Lim's audio is clipped where the network reads it
_LEVEL_REACH = 4  # frames on either side that the normalised and analysed excitation of a frame depends on


@gin.register
@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The config of `Generator`: `channels` halve at each upsampling by `factors`.

    The last convolution makes `patch` samples per step, and the product of `patch` and all factors is HOP. From a
    steady mel alone, a convolutional network can generate only multiples of the frame rate. `excitation` adds a second
    input that does not repeat with the frames: "noise", or the audio of Griffin-Lim, which the network then corrects.
    `refiner` is the name or folder of the checkpoint whose refiner that Griffin-Lim uses; by default it uses none.
    """

    channels: int = 512
    factors: Sequence[int] = (8, 5, 4, 2)
    dilations: Sequence[int] = (1, 3, 9)
    excitation: str = "none"  # none | noise | griffin_lim
    patch: int = 1
    refiner: str = ""

    def __post_init__(self):
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON has only lists
        object.__setattr__(self, "dilations", tuple(self.dilations))
        check_whole(self, 1, MAX_SIZE, "channels")
        check_whole(self, 1, HOP, "patch")
        check_choice(self, "excitation", EXCITATIONS)
        if self.refiner and not self.corrects:
            raise InputError(f"a refiner is for the excitation griffin_lim, but the excitation is {self.excitation!r}")
        for name in ("factors", "dilations"):
            if not all(map(is_whole, getattr(self, name))):
                raise InputError(f"{name} is {getattr(self, name)}; choose whole numbers from 1 to {MAX_SIZE}")

    @property
    def corrects(self) -> bool:
        """Whether the generator corrects the audio of Griffin-Lim."""
        return self.excitation == GRIFFIN_LIM


class ResidualBlock(nnx.Module):
    """A residual block of a dilated and a pointwise convolution."""

    def __init__(self, channels: int, dilation: int, *, rngs: nnx.Rngs):
        self.dilated = Conv(channels, channels, KERNEL, dilation=dilation, rngs=rngs)
        self.pointwise = Conv(channels, channels, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        return x + self.pointwise(leaky(self.dilated(leaky(x))))


class Analysis(nnx.Module):
    """Strided convolutions from audio [b, s, 1] to features at the rates of a generator, from the frame rate up."""

    def __init__(self, cfg: GeneratorConfig, *, rngs: nnx.Rngs):
        widths = [cfg.channels // 2**stage for stage in range(len(cfg.factors) + 1)]
        kernel = EDGE_KERNEL if cfg.patch == 1 else 2 * cfg.patch
        self.enter = Conv(1, widths[-1], kernel, strides=(cfg.patch,), rngs=rngs)
        self.downsamplers = nnx.List(
            Conv(inputs, outputs, 2 * factor, strides=(factor,), rngs=rngs)
            for factor, outputs, inputs in reversed(list(zip(cfg.factors, widths[:-1], widths[1:], strict=True)))
        )

    def __call__(self, audio: Float[Array, "b s 1"]) -> list[Float[Array, "b _t _d"]]:
        features = [self.enter(audio)]
        for downsample in self.downsamplers:
            features.append(downsample(leaky(features[-1])))
        return features[::-1]


class Generator(nnx.Module):
    """A network from unscaled log-mel [b, t, MEL_BINS] to audio [b, t * HOP].

    Convolutions pad with zeros; `MelGAN` in `streaming` pads with silence instead. With the excitation "noise", `first`
    [b] is the number of a mel's first frame in its piece. The noise of a frame depends on its number only, so that the
    audio does not depend on how a piece is divided into chunks. With the excitation "griffin_lim", `excitation`
    [b, t * HOP] is the audio of Griffin-Lim. The output is its sum with a correction, which is zero before training and
    is scaled by the level of the mel. Without it, the output is between -1 and 1.
    """

    def __init__(self, cfg: GeneratorConfig, *, rngs: nnx.Rngs):
        """Raises InputError if the product of the upsampling factors and `patch` is not HOP."""
        if math.prod(cfg.factors) * cfg.patch != HOP:
            raise InputError(
                f"the upsampling factors {cfg.factors} and the patch {cfg.patch} must multiply to {HOP}, the samples "
                "of a frame"
            )
        self.cfg = cfg
        channels = cfg.channels
        self.enter = Conv(MEL_BINS, channels, EDGE_KERNEL, rngs=rngs)
        self.upsamplers, self.residuals, self.exciters = nnx.List(), nnx.List(), nnx.List()
        left = HOP  # samples per step at the current rate
        for factor in cfg.factors:
            self.upsamplers.append(Conv(channels, channels // 2, 2 * factor, upsampling=factor, rngs=rngs))
            channels //= 2
            left //= factor
            if cfg.excitation == "noise":
                self.exciters.append(Conv(left, channels, 1, scale=0.1, rngs=rngs))  # larger ones saturate the tanh
            self.residuals.append(nnx.List(ResidualBlock(channels, dilation, rngs=rngs) for dilation in cfg.dilations))
        kernel = EDGE_KERNEL if cfg.patch == 1 else 2 * cfg.patch
        self.leave = Conv(channels, 1, kernel, upsampling=cfg.patch, zero=cfg.corrects, rngs=rngs)
        if cfg.corrects:
            self.analysis = Analysis(cfg, rngs=rngs)

    def __call__(
        self,
        mel: Float[Array, "b t m"],
        first: Int[Array, "b"] | None = None,
        excitation: Float[Array, "b s"] | None = None,
    ) -> Float[Array, "b s"]:
        x = self.enter(scale_mel(mel))
        if self.exciters:
            noise = frame_noise(jnp.zeros(len(mel), jnp.int32) if first is None else first, mel.shape[1])
        if self.cfg.corrects:
            level = mel_level(mel)
            features = self.analysis(jnp.clip(excitation / level, -_CLIP, _CLIP)[..., None])
            x += features[0]
        for stage, (upsample, blocks) in enumerate(zip(self.upsamplers, self.residuals, strict=True)):
            x = upsample(leaky(x))
            if self.exciters:  # a step gets the noise of its own samples, which keeps the receptive field
                x += self.exciters[stage](noise.reshape(*x.shape[:2], -1))
            if self.cfg.corrects:
                x += features[stage + 1]
            for block in blocks:
                x = block(x)
        x = self.leave(leaky(x))[..., 0]
        return excitation + level * x if self.cfg.corrects else jnp.tanh(x) * _gate(mel)


def _gate(mel: Float[Array, "b t m"]) -> Float[Array, "b s"]:
    """Returns a gain that is 0 where the mel is silent and 1 where it is not, interpolated between frames."""
    return _interpolate(jnp.clip((mel.max(axis=-1) - LOG_FLOOR) / _FADE, 0.0, 1.0))


def mel_level(mel: Float[Array, "b t m"]) -> Float[Array, "b s"]:
    """Returns the amplitude of a sine with the largest magnitude of a mel, interpolated between frames.

    Each frame has the maximum of itself and its two neighbours, so that attacks can be corrected before they begin.
    """
    largest = jnp.pad(mel.max(axis=-1), ((0, 0), (1, 1)), mode="edge")
    largest = jnp.maximum(jnp.maximum(largest[:, :-2], largest[:, 2:]), largest[:, 1:-1])
    return _interpolate(jnp.exp(largest) / _FULL_SCALE)


def _interpolate(frames: Float[Array, "b t"]) -> Float[Array, "b s"]:
    following = jnp.concatenate([frames[:, 1:], frames[:, -1:]], axis=1)
    fraction = jnp.arange(HOP) / HOP
    return ((1 - fraction) * frames[..., None] + fraction * following[..., None]).reshape(len(frames), -1)


def frame_noise(first: Int[Array, "b"], frames: int) -> Float[Array, "b s"]:
    """Returns white noise of variance 1 for `frames` frames from number `first`; a number always has the same noise."""

    def of_frame(number):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (HOP,))

    numbers = first[:, None] + jnp.arange(frames)
    return jax.vmap(jax.vmap(of_frame))(numbers.astype(jnp.uint32)).reshape(len(first), -1)


def receptive_frames(cfg: GeneratorConfig) -> int:
    """Returns the receptive field: the number of mel frames on either side of its own that a sample depends on."""
    steps = EDGE_KERNEL // 2 if cfg.patch == 1 else 1  # on either side, at the current rate
    for factor in reversed(cfg.factors):
        steps += sum(dilation * (KERNEL // 2) for dilation in cfg.dilations)
        steps = math.ceil(steps / factor) + 1  # the transposed convolution adds one on either side
    return steps + (_LEVEL_REACH if cfg.corrects else EDGE_KERNEL // 2)
