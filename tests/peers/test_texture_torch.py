"""Training of the texture's U-Net with PyTorch, by recipes/texture_torch.py, from the packaged demo."""

import os
import pathlib
import subprocess
import sysconfig

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.diffusion.objective import clipped
from spectrodiff.diffusion.samplers import one_step_target, sample
from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.texture_decoder import TextureCache
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.training.gin_config import read_config

pytestmark = pytest.mark.trial
ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "texture_torch.py"
LOGSNRS = np.float32([-2.8, 3.2])  # of the two steps of demo_student
# Computes what test_losses_equal_ours compares, without the rounding to bfloat16, on two crops of stored windows.
COMPUTE = f"""
import contextlib, pathlib, runpy, sys
import numpy as np, torch
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
recipe = runpy.run_path({str(RECIPE)!r})
torch.autocast = lambda *arguments: contextlib.nullcontext()
windows, eps, out = map(pathlib.Path, sys.argv[1:])
found = open_checkpoint(find_checkpoint("demo"))
texture = recipe["Texture"].of(found.arrays, found.config.decoder)
crop = recipe["crops"](recipe["load_windows"](windows / "heldout"), np.array([0, 1]), np.array([0, 100]), 32)
eps, logsnrs = torch.from_numpy(np.load(eps)), torch.tensor({LOGSNRS.tolist()})
r = crop["x0"] - crop["mean"]
with torch.no_grad():
    values = {{"loss": texture.loss(r, eps, logsnrs[:, None, None], crop)}}
    for index, logsnr in enumerate(logsnrs):
        alpha, sigma = recipe["level"](logsnr)
        values[f"target{{index}}"] = recipe["distillation_target"](
            texture, 3, logsnrs, index, alpha * r + sigma * eps, crop
        )
np.savez(out, **values, **crop)
"""


@pytest.fixture(scope="module")
def start(torch_python):
    """A function that starts the environment's Python, which has PyTorch, with our packages before its own."""
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_COMPILE_DISABLE": "1"}

    def start(*arguments, wait=True):
        command = [torch_python, *map(str, arguments)]
        if wait:
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def run(start):
    """A function that does the same, and returns what is printed."""

    def run(*arguments):
        done = start(*arguments)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def windows(run, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("windows")
    command = [RECIPE, "windows", "--gin_file", "demo.gin", "--checkpoint", "demo", "--data_dir", corpus]
    command += ["--count", "4", "--out", out, "--gin_param", "SpectrogramTask.heldout_windows = 2"]
    run(*command)
    run(*command)  # has nothing left to do
    return out


def test_losses_equal_ours(run, windows, tmp_path):
    """The loss of training, and both targets of distillation with three evaluations of the teacher for a step."""
    eps = jax.random.normal(key := jax.random.key(0), (2, 32, 128))
    np.save(tmp_path / "eps.npy", eps)
    run("-c", COMPUTE, windows, tmp_path / "eps.npy", tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")

    decoder = open_checkpoint(find_checkpoint("demo")).build().decoder
    process, x0 = decoder.config.process, jnp.asarray(theirs["x0"])
    cache = TextureCache(*(jnp.asarray(theirs[name]) for name in ("mean", "sketch", "before", "known")))

    def network(z, logsnr):
        return decoder(cache, z, logsnr)

    loss = process.loss(network, x0, jnp.asarray(theirs["mask"] > 0), jnp.asarray(LOGSNRS), key, cache.mean)
    np.testing.assert_allclose(theirs["loss"], loss, rtol=1e-4)

    denoise = clipped(process.denoiser(network, cache.mean), *decoder.config.bounds)
    step, schedule, _ = decoder.config.options()
    alphas, sigmas = (np.sqrt(1.0 / (1.0 + np.exp(sign * LOGSNRS))) for sign in (-1.0, 1.0))
    low, high = jnp.asarray(LOGSNRS)
    first, second = (alpha * x0 + sigma * eps for alpha, sigma in zip(alphas, sigmas, strict=True))
    unused = jax.random.split(key, 2)
    targets = [
        one_step_target(denoise, step, first, low, high, 3, unused),
        sample(denoise, step, jnp.linspace(high, schedule[-1], 3), second, unused),
    ]
    for index, target in enumerate(targets):
        np.testing.assert_allclose(theirs[f"target{index}"], target - cache.mean, atol=1e-4)


def test_stored_windows_are_those_of_the_decoder(windows, corpus):
    read_config(["demo.gin"], [f"Mixture.data_dir = '{corpus}'", "SpectrogramTask.heldout_windows = 2"])
    task = gin.get_bindings("train")["task"]
    model, batch = task.load("demo"), jax.device_put(task.heldout)
    encoded = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)
    fields = {**model.decoder.cache(encoded)._asdict(), "mask": batch["target_mask"]}
    fields["x0"] = model.decoder.config.normalise(batch["target"])
    stored = {path.stem: np.load(path) for path in (windows / "heldout").iterdir()}
    assert stored.keys() == fields.keys()
    for name, values in fields.items():
        np.testing.assert_allclose(stored[name], values, atol=4e-3)  # float16
    assert len(np.load(windows / "train" / "x0.npy")) == 4


def test_training_continues_and_changes_only_the_unet(run, start, windows, tmp_path):
    def train(out, steps, *more):
        shared = ["--windows", windows, "--batch", 2, "--steps", steps, "--every", 2, "--out", tmp_path / out]
        return [RECIPE, "train", *shared, *(more or ("--gin_file", "demo.gin", "--checkpoint", "demo"))]

    assert run(*train("whole", 4)).count("held-out loss") == 3
    with start(*train("again", 4), wait=False) as killed:
        while not killed.stdout.readline().startswith("step 2:"):
            assert killed.poll() is None
        killed.kill()
    assert run(*train("again", 4)).startswith("step 2:")
    whole, again = (load_file(tmp_path / name / "export" / "spectrogram.safetensors") for name in ("whole", "again"))
    before = load_file(find_checkpoint("demo") / "spectrogram.safetensors")
    changed = {name for name in before if np.any(whole[name] != before[name])}
    assert whole.keys() == before.keys()
    assert changed
    assert all(name.startswith("decoder.texture.") for name in changed)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert run(*train("whole", 4)).startswith("step 4:")  # has nothing left to do

    other = start(*train("whole", 6))
    assert other.returncode == 2
    (line,) = [line for line in other.stderr.splitlines() if line.startswith("texture_torch.py: ")]
    assert "--steps" in line


def test_student_samples_as_its_config_says(run, windows, tmp_path):
    run(RECIPE, "train", "--gin_file", "demo_student.gin", "--checkpoint", "demo", "--windows", windows, "--batch", 2,
        "--steps", 1, "--every", 1, "--out", tmp_path)  # fmt: skip
    sampling = MelSampler.from_pretrained(tmp_path / "export").config.decoder.sampling
    assert (sampling.sampler, sampling.steps) == ("ddim", 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--gin_file", "melgan.gin", "--checkpoint", "demo"], "melgan.gin"),
        (["--gin_file", "demo.gin", "--checkpoint", "none"], "'none'"),
        (["--gin_file", "demo.gin", "--checkpoint", "demo"], "absent"),
    ],
)
def test_bad_input_is_one_line(start, tmp_path, options, named):
    done = start(RECIPE, "train", *options, "--windows", tmp_path / "absent", "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("texture_torch.py: ")]
    assert named in line
