"""The task of training a MelGAN vocoder against discriminators (a generative adversarial network)."""

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
from spectrodiff.training.vocoder import VocoderTask, gradient_scales
from spectrodiff.vocoder.discriminator import DiscriminatorConfig, Discriminators
from spectrodiff.vocoder.generator import Generator
from spectrodiff.vocoder.losses import VerdictLoss, adversarial_losses, least_squares, spectral_losses, total


class Adversaries(nnx.Module):
    """A generator and its discriminators, which are trained in one step."""

    def __init__(self, generator: Generator, discriminators: Discriminators):
        self.generator = generator
        self.discriminators = discriminators


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AdversarialTask(VocoderTask):
    """Trains a MelGAN `Generator` against `Discriminators`. Only the generator is evaluated and exported.

    `loss_weights` are the weights of the generator's losses: the spectral losses, `adversarial` and `features` (feature
    matching). The weight of the discriminators' loss is always 1. `verdict_loss` is `least_squares`, `hinge` or
    `relativistic`.
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
                f"crop_frames is {self.crop_frames}; the discriminator with a window of {longest} samples needs "
                f"{-(-longest // HOP)} frames or more"
            )
        if "discriminator" in self.loss_weights:
            raise InputError("loss_weights name discriminator, whose weight is always 1; leave it out")

    def build(self, rngs: nnx.Rngs) -> Adversaries:
        """Builds a generator and discriminators with newly initialised parameters."""
        return Adversaries(super().build(rngs), Discriminators(self.discriminators, rngs=rngs))

    def load(self, checkpoint: str) -> Adversaries:
        """Loads the generator of a checkpoint, as `VocoderTask` does, and initialises new discriminators."""
        return Adversaries(super().load(checkpoint), Discriminators(self.discriminators, rngs=nnx.Rngs(0)))

    def loss(self, model: Adversaries, batch: dict, key: jax.Array, others: Others) -> tuple[jax.Array, dict]:
        """Returns the sum of the losses of generator and discriminators, its terms, and the scales of their gradients.

        Gradients are stopped such that the generator's loss trains the generator alone and the discriminators' loss the
        discriminators alone. Both are updated in the same step, against the other's parameters before it.
        """
        generated, audio = self.generated_and_true(model.generator, batch, key)
        discriminators = model.discriminators
        graph, parameters = nnx.split(discriminators)
        fixed = nnx.merge(graph, jax.lax.stop_gradient(parameters))

        def generator_losses(generated, audio):
            terms = adversarial_losses(fixed(audio), fixed(generated), self.verdict_loss)
            return spectral_losses(generated, audio) | {name: terms[name] for name in ("adversarial", "features")}

        terms = generator_losses(generated, audio)
        constant = jax.lax.stop_gradient(generated)
        discriminator_terms = adversarial_losses(discriminators(audio), discriminators(constant), self.verdict_loss)
        terms["discriminator"] = discriminator_terms["discriminator"]
        value = total(terms, {**self.loss_weights, "discriminator": 1.0})
        return value, terms | gradient_scales(generator_losses, generated, audio, self.loss_weights)

    def vocoder_weights(self, weights: Weights) -> Weights:
        """Returns the weights of the generator."""
        return states.split(nnx.merge(*weights).generator)

    def save(self, folder: pathlib.Path, model: Adversaries, card: dict) -> None:
        """Exports the generator."""
        super().save(folder, model.generator, card)
