"""Fine-tuning on a new instrument with `configs/finetune.gin`, from the command line."""

import json
import re

import gin
import numpy as np
import pytest
from inputs import make_recording, write_dataset
from safetensors.numpy import load_file
from weights import random_arrays, write_weights

from spectrodiff.cli import main
from spectrodiff.synthesizer import Synthesizer
from spectrodiff.training.gin_config import read_config

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


def run_command(*arguments):
    main([*map(str, arguments)])


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Datasets of the new instrument, glass, whose MIDI program is that of a piano, and of the old instruments."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in ((0, "glass"), (2, "rendered")):
        pieces = [make_recording(seed + i, programs=(0,)) for i in (0, 1)]
        write_dataset(folder, name, {"train": pieces[:1], "validation": pieces[1:]})
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with random weights of a small model like the demo's, and their arrays."""
    read_config(["configs/demo.gin"], SMALL)
    config = gin.get_bindings("train")["task"].config
    gin.clear_config()
    folder, arrays = tmp_path_factory.mktemp("known") / "weights", random_arrays(config)
    write_weights(folder, "spectrodiff", config, arrays)
    return folder, arrays


# Bindings, and a pattern of the parameters that they train, besides embeddings. Position tables never train, nor does
# the projection of z in the mean decoder, which is evaluated at z = 0.
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
def test_finetuning_on_a_new_instrument(name, data_dir, pretrained, tmp_path, capsys):
    weights, before = pretrained
    bindings, trains = RULES[name]
    if bindings:
        bindings = [*bindings, f"{name}.programs = ({NEW},)"]
    bindings = [*SMALL, *SHORT, f"train.init_from = '{weights}'", f"Mixture.data_dir = '{data_dir}'", *bindings]
    run = tmp_path / "run"
    arguments = ["--gin_file", "configs/finetune.gin", *(f"--gin_param={binding}" for binding in bindings)]
    run_command("train", "--workdir", run, *arguments)

    # Only the parameters of the rule have changed; of the embeddings only the new instrument's, unless all train.
    after = load_file(run / "export" / "spectrogram.safetensors")
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    moved.discard("decoder.mean_decoder.project.kernel")  # its gradient is zero up to rounding
    assert moved == {TABLE} | set(filter(re.compile(trains).search, before))
    own = Synthesizer.from_pretrained(run / "export").tokenizer
    row = own.vocabulary.program
    if name != "everything":
        assert np.flatnonzero((before[TABLE] != after[TABLE]).any(1)).tolist() == [row(NEW)]
    start, other = before[TABLE][row(RELATIVE)], before[TABLE][row(NEW)]
    assert np.linalg.norm(after[TABLE][row(NEW)] - start) < 0.2 * np.linalg.norm(other - start)
    assert own.mapped(np.array([NEW, NEW + 1])).tolist() == [NEW, 96]

    # The report has both metrics of both datasets, before and after, as in the log.
    report = (run / "report.md").read_text()
    assert report in capsys.readouterr().out
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    first, last = (row for row in log if "heldout_loss" in row)
    assert (first["step"], last["step"]) == (0, 3)
    for figure in ("mel_l1", "loss"):
        for dataset in ("glass", "rendered"):
            key = f"{figure}/{dataset}"
            assert f"| {key} | {first[f'heldout_{key}']:.4f} | {last[f'heldout_{key}']:.4f} |" in report

    # Exporting the checkpoint, which holds only trained parameters, gives the same weights.
    run_command("export", run, tmp_path / "again")
    again = load_file(tmp_path / "again" / "spectrogram.safetensors")
    assert all(np.array_equal(after[key], again[key]) for key in after | again)
