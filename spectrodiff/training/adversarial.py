"""The task of learning audio from mels against discriminators, which learn to tell it from recordings meanwhile."""

import dataclasses
import pathlib
from collections.abc import Mapping

import gin
import jax
from flax import nnx

from spectrodiff.audio.mel import HOP
from spectrodiff.errors import InputError
from spectrodiff.training import state as states
from spectrodiff.training.audio import Weights
from spectrodiff.training.steps import Others
from spectrodiff.training.vocoder import VocoderTask
from spectrodiff.vocoder.discriminator import DiscriminatorConfig, Discriminators
from spectrodiff.vocoder.generator import Generator
from spectrodiff.vocoder.losses import VerdictLoss, adversarial_losses, least_squares, spectral_losses, total


class Adversaries(nnx.Module):
    """A generator and those that judge it, which learn in one step."""

    def __init__(self, generator: Generator, discriminators: Discriminators):
        self.generator = generator
        self.discriminators = discriminators


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AdversarialTask(VocoderTask):
    """Trains a MelGAN `Generator` against `Discriminators`, of which only the generator is evaluated and exported.

    `loss_weights` weigh what the generator is told: the spectral terms, `adversarial` and `features`. The
    discriminators' own term always has weight 1. `verdict_loss` is `least_squares` or `hinge`.
    """

    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    verdict_loss: VerdictLoss = least_squares
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"mel": 15.0, "log_magnitude": 1.0, "adversarial": 1.0, "features": 2.0}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.crop_frames * HOP < (longest := max(self.discriminators.windows, default=0)):
            raise InputError(
                f"crop_frames is {self.crop_frames}; a discriminator's window of {longest} samples needs "
                f"{-(-longest // HOP)} frames or more"
            )
        if "discriminator" in self.loss_weights:
            raise InputError("loss_weights name discriminator, whose weight is always 1; leave it out")

    def build(self, rngs: nnx.Rngs) -> Adversaries:
        return Adversaries(super().build(rngs), Discriminators(self.discriminators, rngs=rngs))

    def load(self, checkpoint: str) -> Adversaries:
        """The generator of a checkpoint's folder, as `VocoderTask.load`, and discriminators that know nothing yet."""
        return Adversaries(super().load(checkpoint), Discriminators(self.discriminators, rngs=nnx.Rngs(0)))

    def loss(self, model: Adversaries, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Of both: its gradient is the generator's loss's for the generator, the discriminators' for these.

        So each side moves against the other as it was before the step.
        """
        made, audio = self.made_and_true(model.generator, batch, key)
        judges = model.discriminators
        graph, parameters = nnx.split(judges)
        bystanders = nnx.merge(graph, jax.lax.stop_gradient(parameters))
        real = bystanders(audio)
        told = adversarial_losses(real, bystanders(made), self.verdict_loss)
        learnt = adversarial_losses(judges(audio), judges(jax.lax.stop_gradient(made)), self.verdict_loss)
        terms = spectral_losses(made, audio) | {name: told[name] for name in ("adversarial", "features")}
        terms["discriminator"] = learnt["discriminator"]
        return total(terms, {**self.loss_weights, "discriminator": 1.0}), terms

    def played(self, weights: Weights) -> Weights:
        """See `AudioTask`: the generator."""
        return states.split(nnx.merge(*weights).generator)

    def save(self, folder: pathlib.Path, model: Adversaries, card: dict) -> None:
        super().save(folder, model.generator, card)
