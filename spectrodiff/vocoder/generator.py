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
from spectrodiff.vocoder.excitation import CORRECTION_REACH, REACH, Analysis, correct, mel_level
from spectrodiff.vocoder.layers import Conv, leaky
from spectrodiff.vocoder.magnitudes import interpolate
from spectrodiff.vocoder.stft import BINS, FINE

GRIFFIN_LIM = "griffin_lim"
EXCITATIONS = ("none", "noise", GRIFFIN_LIM)
EDGE_KERNEL = 7  # of the first and last convolutions
KERNEL = 3  # of the dilated convolutions
_FADE = 2.0  # nats above silence up to which a frame is attenuated


@gin.register
@dataclasses.dataclass(frozen=True)
class GeneratorConfig:
    """The config of `Generator`.

    The network upsamples in stages by `factors`, whose product is HOP. The first stage's input has `channels` channels,
    and each stage halves them.

    From a constant mel alone, a convolutional network can generate only tones at multiples of the frame rate.
    `excitation` adds a second input that does not repeat with the frames. "noise" is white noise. "griffin_lim" is the
    audio of Griffin-Lim, which the network corrects in STFT frames, so that the product of the factors is FINE.
    `refiner` is the name or folder of the checkpoint with the refiner that Griffin-Lim uses; by default it uses none.
    """

    channels: int = 512
    factors: Sequence[int] = (8, 5, 4, 2)
    dilations: Sequence[int] = (1, 3, 9)
    excitation: str = "none"  # none | noise | griffin_lim
    refiner: str = ""

    def __post_init__(self):
        object.__setattr__(self, "factors", tuple(self.factors))  # JSON has only lists
        object.__setattr__(self, "dilations", tuple(self.dilations))
        check_whole(self, 1, MAX_SIZE, "channels")
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


class Generator(nnx.Module):
    """A network from unscaled log-mel [b, t, MEL_BINS] to audio [b, t * HOP].

    Convolutions pad with zeros; `MelGAN` in `streaming` pads with silence instead.

    With the excitation "noise", `first` [b] is the number of a mel's first frame in its piece. The noise of a frame
    depends on its number only, so that the audio does not depend on how a piece is divided into chunks.

    With the excitation "griffin_lim", `excitation` [b, t * HOP] is the audio of Griffin-Lim. The network predicts gains
    of its STFT, which are 0 before training; see `correct`. With other excitations, the output is between -1 and 1.
    """

    def __init__(self, cfg: GeneratorConfig, *, rngs: nnx.Rngs):
        """Raises InputError if the product of the upsampling factors is not HOP, or FINE for "griffin_lim"."""
        product, unit = (FINE, "STFT frames") if cfg.corrects else (HOP, "samples")
        if math.prod(cfg.factors) != product:
            raise InputError(f"the upsampling factors {cfg.factors} must multiply to {product}, the {unit} of a frame")
        self.cfg = cfg
        channels = cfg.channels
        self.enter = Conv(MEL_BINS, channels, EDGE_KERNEL, rngs=rngs)
        self.upsamplers, self.residuals, self.exciters = nnx.List(), nnx.List(), nnx.List()
        samples = HOP  # per step at the current rate
        for factor in cfg.factors:
            self.upsamplers.append(Conv(channels, channels // 2, 2 * factor, upsampling=factor, rngs=rngs))
            channels //= 2
            samples //= factor
            if cfg.excitation == "noise":
                self.exciters.append(Conv(samples, channels, 1, scale=0.1, rngs=rngs))  # larger ones saturate the tanh
            self.residuals.append(nnx.List(ResidualBlock(channels, dilation, rngs=rngs) for dilation in cfg.dilations))
        if cfg.corrects:
            widths = [cfg.channels // 2**stage for stage in range(len(cfg.factors) + 1)]
            self.analysis = Analysis(widths, cfg.factors, rngs=rngs)
            self.leave = Conv(channels, 2 * BINS, 1, zero=True, rngs=rngs)
        else:
            self.leave = Conv(channels, 1, EDGE_KERNEL, rngs=rngs)

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
            features = self.analysis(excitation, mel_level(mel))
            x += features[0]
        for stage, (upsample, blocks) in enumerate(zip(self.upsamplers, self.residuals, strict=True)):
            x = upsample(leaky(x))
            if self.exciters:  # a step gets the noise of its own samples, which does not widen the receptive field
                x += self.exciters[stage](noise.reshape(*x.shape[:2], -1))
            if self.cfg.corrects:
                x += features[stage + 1]
            for block in blocks:
                x = block(x)
        x = self.leave(leaky(x))
        return correct(excitation, x) if self.cfg.corrects else jnp.tanh(x)[..., 0] * _gate(mel)


def _gate(mel: Float[Array, "b t m"]) -> Float[Array, "b s"]:
    """Returns a gain that is 0 where the mel is silent and 1 where it is not, interpolated between frames."""
    return interpolate(jnp.clip((mel.max(axis=-1) - LOG_FLOOR) / _FADE, 0.0, 1.0).T, HOP).T


def frame_noise(first: Int[Array, "b"], frames: int) -> Float[Array, "b s"]:
    """Returns white noise of variance 1 for the `frames` frames from number `first` on, s = frames * HOP samples.

    The noise of a frame depends on its number only.
    """

    def noise_of_frame(number):
        return jax.random.normal(jax.random.fold_in(jax.random.key(0), number), (HOP,))

    numbers = first[:, None] + jnp.arange(frames)
    return jax.vmap(jax.vmap(noise_of_frame))(numbers.astype(jnp.uint32)).reshape(len(first), -1)


def receptive_frames(cfg: GeneratorConfig) -> int:
    """Returns the receptive field: the number of mel frames on either side of its own that a sample depends on."""
    # From the output back to the input: steps on either side at the current rate.
    steps = 0 if cfg.corrects else EDGE_KERNEL // 2
    for factor in reversed(cfg.factors):
        steps += sum(dilation * (KERNEL // 2) for dilation in cfg.dilations)
        steps = math.ceil(steps / factor) + 1  # the transposed convolution adds one on either side
    return steps + (REACH + CORRECTION_REACH if cfg.corrects else EDGE_KERNEL // 2)
