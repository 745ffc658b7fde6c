"""Runs the network and tokenizer of diffusers in a separate Python environment (see conftest.py).

peer.py make FOLDER                        random weights, as diffusers saves them: FOLDER/safetensors and FOLDER/bin
peer.py run FOLDER INPUTS.npz OUTPUTS.npz  the memories and the decoder's output of a pipeline's folder
peer.py tokens OUTPUTS.npz FILE...         each MIDI file's windows of tokens, by the file's name
"""

import json
import pathlib
import sys

import numpy as np
import torch
from diffusers import DDPMScheduler, T5FilmDecoder, pipelines
from diffusers.pipelines.deprecated import spectrogram_diffusion
from diffusers.pipelines.deprecated.spectrogram_diffusion.continuous_encoder import SpectrogramContEncoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.notes_encoder import SpectrogramNotesEncoder
from diffusers.pipelines.deprecated.spectrogram_diffusion.pipeline_spectrogram_diffusion import (
    SpectrogramDiffusionPipeline,
)

# Heads narrower than the network and different depths of the stacks, so that mix-ups fail on shapes.
SIZES = {"d_model": 32, "num_heads": 3, "d_kv": 8, "d_ff": 48, "dropout_rate": 0.1}
GATED = {"feed_forward_proj": "gated-gelu"}
ENCODERS = ("notes_encoder", "continuous_encoder")


def make(folder: pathlib.Path) -> None:
    torch.manual_seed(0)
    pipeline = SpectrogramDiffusionPipeline(
        SpectrogramNotesEncoder(max_length=128, vocab_size=1536, num_layers=2, **SIZES, **GATED),
        SpectrogramContEncoder(input_dims=128, targets_context_length=256, num_layers=1, **SIZES, **GATED),
        T5FilmDecoder(max_decoder_noise_time=2e4, num_layers=3, **SIZES),
        DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_large"),
        melgan=None,
    )
    for name in (*ENCODERS, "decoder"):
        for parameter in getattr(pipeline, name).parameters():
            if parameter.ndim == 1:  # norm scales, which are one before training
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    for kind in ("safetensors", "bin"):
        pipeline.save_pretrained(folder / kind, safe_serialization=kind == "safetensors")
        # This release writes "diffusers" here, which it cannot load; earlier ones wrote what the published folder has.
        index = folder / kind / "model_index.json"
        entries = json.loads(index.read_text())
        entries |= {name: ["spectrogram_diffusion", entries[name][1]] for name in ENCODERS}
        index.write_text(json.dumps(entries, indent=2))


@torch.no_grad()
def run(folder: pathlib.Path, inputs: pathlib.Path, outputs: pathlib.Path) -> None:
    # The published index refers to the encoders by this name, but this release of diffusers has moved them.
    pipelines.spectrogram_diffusion = spectrogram_diffusion
    pipeline = SpectrogramDiffusionPipeline.from_pretrained(folder, melgan=None)
    tokens, context, mask, z, time = (
        torch.from_numpy(np.load(inputs)[name]) for name in ("tokens", "context", "context_mask", "z", "time")
    )
    notes, notes_mask = pipeline.notes_encoder(tokens, tokens > 0)
    # One example at a time, since it rolls positions along the batch axis, which has no effect on a batch of one.
    rows = [pipeline.continuous_encoder(context[i : i + 1], mask[i : i + 1])[0] for i in range(len(context))]
    memory = torch.cat(rows)
    eps = pipeline.decoder([(notes, notes_mask), (memory, mask)], z, time)
    np.savez(outputs, note_memory=notes.numpy(), context_memory=memory.numpy(), eps=eps.numpy())


def tokens(outputs: pathlib.Path, *files: pathlib.Path) -> None:
    from diffusers.pipelines.deprecated.spectrogram_diffusion.midi_utils import MidiProcessor  # slow import

    processor = MidiProcessor()
    np.savez(outputs, **{file.name: np.array(processor(file), np.int32) for file in files})


if __name__ == "__main__":
    {"make": make, "run": run, "tokens": tokens}[sys.argv[1]](*map(pathlib.Path, sys.argv[2:]))
