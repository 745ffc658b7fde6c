"""From a dataset to audio by the command line: train both networks, resume, export, render."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import gin
import matplotlib.image
import numpy as np
import pytest
import soundfile
from inputs import random_notes

from spectrodiff import Synthesizer
from spectrodiff.cli import main
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.streaming import MelGAN

ROOT = pathlib.Path(__file__).parent.parent


def train(workdir, config, *bindings):
    params = [part for binding in bindings for part in ("--gin_param", binding)]
    try:
        main(["train", "--gin_file", str(ROOT / "configs" / config), *params, "--workdir", str(workdir)])
    finally:
        gin.clear_config()


def read_log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained_runs(corpus, tmp_path_factory):
    """A folder with the workdirs of both networks; the spectrogram model stopped at step 2 and resumed."""
    folder = tmp_path_factory.mktemp("runs")
    bindings = ["SpectrogramTask.batch_size = 2", "SpectrogramTask.tokens = 512", "train.optimizer = @adamw()"]
    bindings += [f"Mixture.data_dir = '{corpus}'"]
    for steps in (2, 3):
        train(folder / "spectrogram", "tiny.gin", *bindings, f"train.steps = {steps}")
    small = ["GeneratorConfig.channels = 16", "GeneratorConfig.dilations = (1,)", "VocoderTask.batch_size = 2"]
    small += ["VocoderTask.crop_frames = 8", "VocoderTask.heldout_crops = 2", f"Mixture.data_dir = '{corpus}'"]
    train(folder / "vocoder", "melgan.gin", *small, "train.steps = 2")
    return folder


@pytest.mark.trial
def test_training_resumes_logs_and_saves_its_config(trained_runs):
    records = read_log(trained_runs / "spectrogram")
    assert [record["step"] for record in records if "mean_mel" in record] == [0]  # only once, although the run resumed
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3]
    assert [record["step"] for record in records if "heldout_mel_l1" in record] == [2, 3]
    assert [record["step"] for record in read_log(trained_runs / "vocoder") if "heldout_mel" in record] == [2]
    assert "ModelConfig.width = 32" in (trained_runs / "spectrogram" / "config.gin").read_text()
    card = json.loads((trained_runs / "spectrogram" / "export" / "spectrogram.json").read_text())["card"]
    assert card["steps"] == 3


@pytest.mark.trial
def test_exported_weights_render_audio(trained_runs, tmp_path):
    notes = random_notes(0, seconds=3.0)
    export = trained_runs / "spectrogram" / "export"
    alone = Synthesizer.from_pretrained(export)
    assert isinstance(alone.vocoder, GriffinLim)
    both = tmp_path / "both"
    shutil.copytree(export, both)
    for path in (trained_runs / "vocoder" / "export").iterdir():
        shutil.copy(path, both)
    together = Synthesizer.from_pretrained(both)
    assert isinstance(together.vocoder, MelGAN)
    for synthesizer in (alone, together):
        audio = synthesizer(notes, steps=1, guidance=1.0)
        assert audio.shape == (5 * 16000,)
        assert np.isfinite(audio).all()
        assert np.abs(audio).max() > 1e-4


@pytest.mark.trial
def test_infer_script_is_quiet_and_reproducible(checkpoint, tmp_path):
    """Runs with an empty and a filled compilation cache write the same audio, and only progress to stderr."""
    midi = str(ROOT / "examples" / "bach_prelude.mid")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for run in ("first", "second"):
        out, plot, mel_out = (tmp_path / f"{run}.{suffix}" for suffix in ("wav", "png", "npz"))
        command = [sys.executable, "infer.py", "--midi", midi, "--out", out, "--plot", plot, "--mel_out", mel_out]
        command += ["--checkpoint", checkpoint, "--steps", "2"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{out}: ")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        assert all(line.startswith(("synthesizing: ", "vocoding: ")) for line in lines), done.stderr

    assert (tmp_path / "first.wav").read_bytes() == (tmp_path / "second.wav").read_bytes()
    audio = soundfile.info(tmp_path / "first.wav")
    mel = np.load(tmp_path / "first.npz")["mel"]
    assert (audio.samplerate, audio.channels, audio.frames) == (16000, 1, 320 * len(mel))
    assert mel.shape[1] == 128
    assert matplotlib.image.imread(tmp_path / "first.png").size > 0


def test_infer_script_errors_are_one_line(tmp_path):
    command = [sys.executable, "infer.py", "--midi", "nope.mid", "--out", tmp_path / "a.wav", "--checkpoint", "nope"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "nope.mid" in done.stderr
    assert not list(tmp_path.iterdir())
