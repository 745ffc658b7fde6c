"""Distillation of a texture decoder to few steps: the loss, training, and checks of teacher and student."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import OURS
from safetensors.numpy import load_file

from spectrodiff.cli import main
from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.schedule import EvenLogSNR
from spectrodiff.errors import InputError
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.diffusion_decoder import DiffusionConfig
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.models.texture_decoder import TextureConfig, TextureSamplingConfig
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import save
from spectrodiff.training import loop
from spectrodiff.training.adaptation import only
from spectrodiff.training.distillation import Distillation
from spectrodiff.training.optimizers import muon
from spectrodiff.training.spectrogram import SpectrogramTask
from spectrodiff.training.steps import Others

MEAN = DiffusionConfig(process=OURS.decoder.process)
TEXTURE = TextureConfig(mean=-0.3, std=0.375, mean_decoder=MEAN, channels=(4, 8), crop_frames=32)
TEACHER = dataclasses.replace(OURS, decoder=TEXTURE)


def student_config(steps, high=3.2):
    """The config of a student that samples in `steps` steps."""
    process = dataclasses.replace(TEXTURE.process, schedule=EvenLogSNR(-2.8, high))
    sampling = TextureSamplingConfig("ddim", steps)
    return dataclasses.replace(TEACHER, decoder=dataclasses.replace(TEXTURE, process=process, sampling=sampling))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    save(folder, SPECTROGRAM, SpectrogramModel(TEACHER, rngs=nnx.Rngs(0)), TEACHER, {})
    return folder


def make_task(corpus, teacher, config, **options):
    distillation = Distillation(str(teacher), **options)
    return SpectrogramTask(Mixture(str(corpus)), config, batch_size=2, tokens=256, distillation=distillation)


def losses(task, checkpoint):
    """The loss and its metrics on two held-out windows, for a student with the weights of a checkpoint."""
    batch = {name: jnp.asarray(array[:2]) for name, array in task.heldout.items() if name != "dataset"}
    graph, state = nnx.split(task.load(str(checkpoint)))
    others = Others(lambda: None, task.frozen_modules())
    return jax.jit(lambda state: task.loss(nnx.merge(graph, state), batch, jax.random.key(0), others))(state)


@pytest.mark.parametrize("steps", [1, 2])
def test_copy_of_the_teacher_has_zero_loss_for_one_substep(corpus, teacher, steps, monkeypatch):
    """Clipping is off: an untrained teacher exceeds the range, and only its outputs would be clipped."""
    monkeypatch.setattr(TextureConfig, "bounds", (-1e3, 1e3))
    value, metrics = losses(make_task(corpus, teacher, student_config(steps), substeps=1), teacher)
    assert metrics.keys() == {f"step_{number + 1}_loss" for number in range(steps)}
    assert float(value) < 1e-8


def test_copy_of_the_teacher_has_a_loss_for_more_substeps(corpus, teacher, monkeypatch):
    monkeypatch.setattr(TextureConfig, "bounds", (-1e3, 1e3))
    value, metrics = losses(make_task(corpus, teacher, student_config(2), substeps=3), teacher)
    assert all(float(loss) > 0.01 for loss in (value, *metrics.values()))


@pytest.mark.trial
def test_training_reduces_the_loss_and_changes_only_the_texture(corpus, teacher, tmp_path):
    task = make_task(corpus, teacher, student_config(2), substeps=3)
    options = {"adaptation": only(r"^decoder\.texture\."), "init_from": str(teacher), "average_decay": 0.5}
    loop.train(tmp_path, task=task, optimizer=muon(adam_rate=3e-3, clip=1.0), steps=40, log_every=40, **options)
    (_, first), (_, last) = (losses(task, folder) for folder in (teacher, tmp_path / "export"))
    for name in ("step_1_loss", "step_2_loss"):
        assert float(last[name]) < 0.7 * float(first[name]), name
    before, after = (load_file(folder / "spectrogram.safetensors") for folder in (teacher, tmp_path / "export"))
    assert before.keys() == after.keys()  # no weights of the teacher are saved
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("decoder.texture.") for name in changed)
    sampler = MelSampler.from_pretrained(str(tmp_path / "export"))
    assert sampler.config == student_config(2)
    assert sampler.config.decoder.options().logsnrs.tolist() == pytest.approx([-2.8, 3.2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder": OURS.decoder}, r"^Distillation\.teacher "),
        ({"decoder": dataclasses.replace(TEXTURE, sampling=TextureSamplingConfig("ddpm"))}, r"^Distillation\.teacher"),
        (
            {"decoder": dataclasses.replace(TEXTURE, sampling=TextureSamplingConfig(steps=0))},
            r"^Distillation\.teacher ",
        ),
        ({"decoder": dataclasses.replace(TEXTURE, channels=(4, 12))}, r"channels is .*12.*8"),
        ({"model": dataclasses.replace(OURS.model, mlp_width=32)}, r"mlp_width is 32\b.*\b64\b"),
    ],
)
def test_unsuitable_teacher_raises_input_error(corpus, tmp_path, change, message):
    theirs = dataclasses.replace(TEACHER, **change)
    save(tmp_path, SPECTROGRAM, SpectrogramModel(theirs, rngs=nnx.Rngs(0)), theirs, {})
    with pytest.raises(InputError, match=message) as error:
        make_task(corpus, tmp_path, student_config(2)).frozen_modules()
    assert "\n" not in str(error.value)


def test_unsuitable_student_raises_input_error(corpus):
    with pytest.raises(InputError, match=r"\btexture\b.*\bdiffusion\b"):
        make_task(corpus, "demo", OURS)
    with pytest.raises(InputError, match=r"sampler 'dpmpp' and steps 8.*'ddim'"):
        make_task(corpus, "demo", TEACHER)
    with pytest.raises(InputError, match="steps 0"):
        make_task(corpus, "demo", student_config(0))
    with pytest.raises(InputError, match="substeps"):
        Distillation("demo", substeps=0)


def test_wrong_teacher_is_a_one_line_error_of_train(corpus, tmp_path, capfd):
    bindings = [
        f"Mixture.data_dir = {str(corpus)!r}",
        "train.evaluators = ()",
        "Distillation.teacher = 'demo_diffusion'",
    ]
    arguments = [part for binding in bindings for part in ("--gin_param", binding)]
    with pytest.raises(SystemExit) as ended:
        main(["train", "--gin_file", "demo_student.gin", "--workdir", str(tmp_path), *arguments])
    assert ended.value.code == 2
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "demo_diffusion" in line]
    assert "Distillation.teacher" in line
