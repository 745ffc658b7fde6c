"""The examples of docs/extending.md run, and training, evaluation and rendering use their classes."""

import dataclasses
import json
import pathlib
import re
import sys
import types

import numpy as np
import pytest
import soundfile
from inputs import OURS, PAPER, make_recording

from spectrodiff import Synthesizer
from spectrodiff.audio.mel import SAMPLE_RATE
from spectrodiff.config import from_dict, to_dict
from spectrodiff.data.builders.preparation import prepare
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.diffusion.process import Process
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.training.evaluators import HeldoutLoss, MelError
from spectrodiff.training.loop import train
from spectrodiff.training.optimizers import adamw
from spectrodiff.training.spectrogram import SpectrogramTask

DOC = pathlib.Path(__file__).parent.parent / "docs" / "extending.md"
PIECE = pathlib.Path(__file__).parent.parent / "examples" / "bach_prelude.mid"


@pytest.fixture(scope="module")
def page_module():
    """The Python blocks of the page as a module `my_parts`, so that its classes can be pickled."""
    module = types.ModuleType("my_parts")
    sys.modules["my_parts"] = module
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)), DOC, "exec"), module.__dict__)
    yield module
    del sys.modules["my_parts"]


def train_briefly(config, corpus, workdir, evaluators):
    """The rows of the log and the exported synthesizer of a run of four steps."""
    task = SpectrogramTask(Mixture(str(corpus)), config, batch_size=2, tokens=128, heldout_windows=2)
    train(workdir, task=task, optimizer=adamw(), steps=4, evaluators=evaluators, log_every=2)
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return rows, Synthesizer.from_pretrained(workdir / "export")


def logged_values(rows, name):
    return [row[name] for row in rows if name in row]


def test_code_blocks_are_short():
    blocks = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.S)
    assert len(blocks) == 6
    for block in blocks:
        code = [line for line in block.splitlines() if line.strip() and not line.startswith(("from", "import"))]
        assert len(code) <= 30


@pytest.mark.trial
def test_custom_objective_and_evaluator(page_module, corpus, tmp_path):
    decoder = dataclasses.replace(OURS.decoder, process=Process(page_module.HuberX0(delta=0.2)))
    config = dataclasses.replace(OURS, decoder=decoder)
    assert from_dict(SpectrogramConfig, to_dict(config)) == config
    rows, synthesizer = train_briefly(config, corpus, tmp_path, [MelError(every=2), page_module.WorstWindow(every=2)])
    worst, mean = logged_values(rows, "heldout_worst_window"), logged_values(rows, "heldout_mel_l1")
    assert len(worst) == len(mean) == 2
    assert all(a >= b for a, b in zip(worst, mean, strict=True))
    assert synthesizer.config.decoder.process.objective == page_module.HuberX0(delta=0.2)


@pytest.mark.trial
def test_custom_decoder_and_vocoder(page_module, corpus, tmp_path):
    model = dataclasses.replace(PAPER.model, max_tokens=2048)
    config = dataclasses.replace(PAPER, model=model, decoder=page_module.RegressionConfig())
    rows, synthesizer = train_briefly(config, corpus, tmp_path, [MelError(), HeldoutLoss()])
    assert logged_values(rows, "heldout_loss")[0] > 0
    assert isinstance(synthesizer.model.decoder, page_module.Regression)
    synthesizer.vocoder = page_module.Hiss()
    audio = synthesizer(PIECE)
    assert np.isfinite(audio).all()
    assert audio.std() > 0


def test_custom_corpus(page_module, tmp_path):
    recording = make_recording(0)
    for name in ("first", "second"):
        folder = tmp_path / "duets" / name
        folder.mkdir(parents=True)
        soundfile.write(folder / "mix.wav", recording.audio, SAMPLE_RATE)
        (folder / "notes.mid").write_bytes(PIECE.read_bytes())
    prepare(page_module.Duets(), tmp_path / "duets", tmp_path / "data", workers=1)
    names = {record["name"] for record in open_dataset(tmp_path / "data", "duets")["train"]}
    assert names == {b"first", b"second"}
