"""Training of the texture's U-Net with PyTorch, by recipes/texture_torch.py, from the packaged demo."""

import os
import pathlib
import subprocess
import sysconfig

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from spectrodiff.mel_sampler import MelSampler
from spectrodiff.models.texture_decoder import TextureCache
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "texture_torch.py"
# Runs the recipe's network, without the rounding to bfloat16, on the first crops of the held-out windows.
EVALUATE = f"""
import contextlib, pathlib, runpy, sys
import numpy as np, torch
recipe = runpy.run_path({str(RECIPE)!r})
torch.autocast = lambda *arguments: contextlib.nullcontext()
windows, out = map(pathlib.Path, sys.argv[1:])
texture = recipe["load_unet"]("demo")
crop = recipe["crops"](recipe["load_windows"](windows / "heldout"), np.array([0, 1]), np.array([0, 100]), 32)
logsnr = torch.tensor([-1.0, 5.0])[:, None, None]
y = torch.randn(crop["x0"].shape, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    np.savez(out, y=y, r=texture.denoise(y, logsnr, crop), **crop)
"""


@pytest.fixture(scope="module")
def run(torch_python):
    """A function that runs the environment's Python, which has PyTorch, with our packages before its own."""
    paths = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": paths, "TORCH_COMPILE_DISABLE": "1"}

    def run(*arguments):
        done = subprocess.run(
            [torch_python, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    return run


@pytest.fixture(scope="module")
def windows(run, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("windows")
    run(RECIPE, "windows", "--gin_file", "demo.gin", "--checkpoint", "demo", "--data_dir", corpus, "--windows", "4",
        "--out", out, "--gin_param", "SpectrogramTask.heldout_windows = 2")  # fmt: skip
    return out


def test_network_equals_ours(run, windows, tmp_path):
    run("-c", EVALUATE, windows, tmp_path / "out.npz")
    theirs = np.load(tmp_path / "out.npz")
    decoder = open_checkpoint(find_checkpoint("demo")).build().decoder
    cache = TextureCache(*(jnp.asarray(theirs[name]) for name in ("mean", "sketch", "before", "known")))
    logsnr = jnp.array([-1.0, 5.0])[:, None, None]
    z = theirs["y"] + jnp.sqrt(1.0 / (1.0 + jnp.exp(-logsnr))) * cache.mean
    denoise = decoder.config.process.denoiser(lambda z, logsnr: decoder(cache, z, logsnr[:, 0, 0]), cache.mean)
    low, high = decoder.config.bounds
    ours = jnp.clip(denoise(z, logsnr), low, high) - cache.mean
    np.testing.assert_allclose(theirs["r"], ours, atol=2e-5)


def test_training_then_distillation_change_only_the_unet(run, windows, tmp_path):
    shared = ["train", "--windows", windows, "--batch", "2", "--every", "1"]
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    first = [*shared, "--gin_file", "demo.gin", "--checkpoint", "demo", "--out", teacher]
    assert run(RECIPE, *first, "--steps", "1").count("held-out loss") == 2
    assert "step 1:" in run(RECIPE, *first, "--steps", "2").splitlines()[0]  # continues
    run(RECIPE, *shared, "--gin_file", "demo_student.gin", "--checkpoint", teacher / "export",
        "--teacher", teacher / "export", "--out", student, "--steps", "1")  # fmt: skip
    before = load_file(find_checkpoint("demo") / "spectrogram.safetensors")
    for folder in (teacher, student):
        after = load_file(folder / "export" / "spectrogram.safetensors")
        assert after.keys() == before.keys()
        changed = {name for name in after if np.any(after[name] != before[name])}
        assert changed
        assert all(name.startswith("decoder.texture.") for name in changed)
    sampling = MelSampler.from_pretrained(student / "export").config.decoder.sampling
    assert (sampling.sampler, sampling.steps) == ("ddim", 2)
