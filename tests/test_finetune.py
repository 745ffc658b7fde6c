"""Weights that learn an instrument they never knew, by `configs/finetune.gin`, as a user would have them do it."""

import json
import re

import gin
import numpy as np
import pytest
from inputs import make_recording, write_dataset
from safetensors.numpy import load_file
from weights import random_arrays, write_weights

from spectrodiff.cli import main
from spectrodiff.commands.train import read_config
from spectrodiff.synthesizer import Synthesizer

NEW, RELATIVE = 98, 8
TABLE = "note_encoder.embedding.embedding"
SMALL = ["ModelConfig.width = 32", "ModelConfig.heads = 2", "ModelConfig.head_dim = 16", "ModelConfig.mlp_width = 64"]
SMALL += ["ModelConfig.note_layers = 1", "ModelConfig.decoder_layers = 1", "SpectrogramTask.batch_size = 2"]
SMALL += ["TextureConfig.channels = (4, 8)"]
SHORT = [
    "train.steps = 3",
    "muon.warmup = 0",
    "SpectrogramTask.heldout_windows = 4",
    "MelError.sampling = {'steps': 2}",
]


def command(*arguments):
    main([*map(str, arguments)])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Glass, which says of itself that it is a piano, and what was there before."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in ((0, "glass"), (2, "rendered")):
        pieces = [make_recording(seed + i, programs=(0,)) for i in (0, 1)]
        write_dataset(folder, name, {"train": pieces[:1], "validation": pieces[1:]})
    return folder


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A folder with weights like the demo's, but small, and their arrays."""
    read_config(["configs/demo.gin"], SMALL)
    config = gin.get_bindings("train")["task"].config
    gin.clear_config()
    folder, arrays = tmp_path_factory.mktemp("known") / "weights", random_arrays(config)
    write_weights(folder, "spectrodiff", config, arrays)
    return folder, arrays


# Bindings, and a pattern of what they have train: all but tables of positions, and the projection of z for the mean,
# which is evaluated at z = 0.
RULES = {
    "everything": ([], r"^(?!.*positions|decoder\.mean_decoder\.project\.)"),
    "only": (
        ["train.adaptation = @only()", "only.pattern = 'decoder'"],
        r"^decoder\.(?!.*positions|mean_decoder\.project\.)",
    ),
    "lora": (["train.adaptation = @lora()", "lora.rank = 2"], r"attention\.(query|key|value|out)\."),
}


@pytest.mark.trial
@pytest.mark.parametrize("name", RULES)
def test_a_new_instrument(name, data_dir, known, tmp_path, capsys):
    weights, before = known
    bindings, trains = RULES[name]
    if bindings:
        bindings = [*bindings, f"{name}.programs = ({NEW},)"]
    bindings = [*SMALL, *SHORT, f"train.init_from = '{weights}'", f"Mixture.data_dir = '{data_dir}'", *bindings]
    run = tmp_path / "run"
    arguments = ["--gin_file", "configs/finetune.gin", *(f"--gin_param={binding}" for binding in bindings)]
    command("train", "--workdir", run, *arguments)

    # What trained is what the rule names; of the embeddings only the new instrument's, if not all.
    after = load_file(run / "export" / "spectrogram.safetensors")
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    moved.discard("decoder.mean_decoder.project.kernel")  # of zero gradient, but for rounding errors
    assert moved == {TABLE} | set(filter(re.compile(trains).search, before))
    own = Synthesizer.from_pretrained(run / "export").tokenizer
    row = own.vocabulary.program
    if name != "everything":
        assert np.flatnonzero((before[TABLE] != after[TABLE]).any(1)).tolist() == [row(NEW)]
    start, other = before[TABLE][row(RELATIVE)], before[TABLE][row(NEW)]
    assert np.linalg.norm(after[TABLE][row(NEW)] - start) < 0.2 * np.linalg.norm(other - start)
    assert own.mapped(np.array([NEW, NEW + 1])).tolist() == [NEW, 96]

    # The report has both figures of both, before and after, as the log does.
    report = (run / "report.md").read_text()
    assert report in capsys.readouterr().out
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = (row for row in log if "heldout_loss" in row)
    assert (first["step"], last["step"]) == (0, 3)
    for figure in ("mel_l1", "loss"):
        for dataset in ("glass", "rendered"):
            key = f"{figure}/{dataset}"
            assert f"| {key} | {first[f'heldout_{key}']:.4f} | {last[f'heldout_{key}']:.4f} |" in report

    # The checkpoint, which holds only what trains, gives the same weights.
    command("export", run, tmp_path / "again")
    again = load_file(tmp_path / "again" / "spectrogram.safetensors")
    assert all(np.array_equal(after[key], again[key]) for key in after | again)
