"""Progressive distillation of a texture decoder: a student that samples in fewer steps than its teacher."""

import dataclasses

import gin

from spectrodiff.config import check_whole
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import DecoderConfig
from spectrodiff.models.texture_decoder import TextureConfig
from spectrodiff.pretrained.formats import Checkpoint, open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint


@gin.register
@dataclasses.dataclass(frozen=True)
class Distillation:
    """Progressive distillation (Salimans & Ho 2022) from the checkpoint `teacher`.

    The student is the task's model. Its sampling options, DDIM and a number of steps, are those that it is trained for
    and exported with. Each of its steps replaces `substeps` evaluations of the teacher. It should start from the
    teacher's weights (`train.init_from`), with only its U-Net trained.
    """

    teacher: str
    substeps: int = 6

    def __post_init__(self):
        check_whole(self, 1, 100, "substeps")

    def check_student(self, decoder: DecoderConfig) -> None:
        """Raises InputError if a decoder of this config cannot be a student."""
        if not isinstance(decoder, TextureConfig):
            raise InputError(f"a student has a texture decoder, not the {decoder.kind} decoder")
        if decoder.sampling.sampler != "ddim" or not decoder.sampling.steps:
            chosen = f"sampler {decoder.sampling.sampler!r} and steps {decoder.sampling.steps}"
            raise InputError(f"TextureSamplingConfig has {chosen}; a student needs 'ddim' and 1 step or more")

    def open_teacher(self) -> Checkpoint:
        """Opens the teacher's checkpoint.

        Raises:
          InputError: it does not exist, or it does not sample textures deterministically.
        """
        found = open_checkpoint(find_checkpoint(self.teacher))
        decoder = found.config.decoder
        if not isinstance(decoder, TextureConfig) or not decoder.sampling.steps or decoder.sampling.sampler == "ddpm":
            needed = "weights with a texture decoder whose sampler is dpmpp or ddim, such as demo"
            raise InputError(f"Distillation.teacher {self.teacher!r} cannot teach a texture; choose {needed}")
        return found
