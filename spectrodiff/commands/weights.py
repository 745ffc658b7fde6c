"""`info` and `convert`: describe a checkpoint, and convert it to another format."""

import json
import math
import shutil

from spectrodiff.config import to_dict
from spectrodiff.errors import InputError
from spectrodiff.files import replacing_folder

# Width, heads, head dim, MLP width and layers of configs/NAME.gin.
SIZES = {"small": (512, 6, 64, 1024, 8), "base": (768, 12, 64, 2048, 12), "large": (1024, 16, 64, 2816, 24)}


def add(commands) -> None:
    _add_info(commands)
    _add_convert(commands)


def _add_info(commands) -> None:
    parser = commands.add_parser(
        "info", help="describe a checkpoint", examples=["info demo", "info --checkpoint runs/demo/export"]
    )
    weights = parser.add_mutually_exclusive_group(required=True)
    weights.add_argument("path", nargs="?", metavar="PATH", help="folder or name of the weights, or hf://owner/name")
    weights.add_argument("--checkpoint", metavar="PATH", help="the same, as for other commands")
    parser.set_defaults(run=_info)


def _add_convert(commands) -> None:
    parser = commands.add_parser(
        "convert", help="write a checkpoint in another format", examples=["convert PATH NEW --to spectrodiff"]
    )
    parser.add_argument("source", metavar="SRC", help="folder or name of the weights, or hf://owner/name")
    parser.add_argument("destination", metavar="DST", help="folder to write, which must not exist or be empty")
    parser.add_argument("--to", required=True, choices=("spectrodiff", "diffusers"), help="the format to write")
    parser.set_defaults(run=_convert)


def _info(options) -> None:
    from spectrodiff.pretrained.formats import open_checkpoint
    from spectrodiff.pretrained.hub import find_checkpoint

    found = open_checkpoint(find_checkpoint(options.path or options.checkpoint))
    specs = found.specs().values()
    model, tokenizer = found.config.model, found.config.tokenizer
    layers = {"notes": model.note_layers, "decoder": model.decoder_layers}
    if model.with_context:
        layers["context"] = model.context_layers
    sizes = {(model.width, model.heads, model.head_dim, model.mlp_width, count) for count in layers.values()}
    name = next((name for name, size in SIZES.items() if sizes == {size}), "none of " + ", ".join(SIZES))
    options = ("compact_notes", "event_times", "note_roll", "continuation")
    ours = [option for option in options if getattr(model, option)]
    for key, value in {
        "format": found.format,
        "size": name,
        "parameters": f"{sum(math.prod(spec.shape) for spec in specs) / 1e6:.1f} M",
        "dtype": ", ".join(sorted({spec.dtype for spec in specs})),
        "width": f"{model.width}, {model.heads} heads of {model.head_dim}, MLP {model.mlp_width}",
        "layers": ", ".join(f"{stack} {count}" for stack, count in layers.items()),
        "vocabulary": f"{model.vocabulary_rows} embeddings, programs {tokenizer.program_map}",
        "velocity bins": tokenizer.velocity_bins,
        "step": found.card.get("steps", "unknown"),
        "decoder": found.config.decoder.title,
        "our options": ", ".join(ours) or "none",
        "vocoder": _own_vocoder(found) or found.onnx_vocoder or "none",
    }.items():
        print(f"{key:<14}{value}")


def _convert(options) -> None:
    from spectrodiff.pretrained import diffusers, native
    from spectrodiff.pretrained.formats import open_checkpoint
    from spectrodiff.pretrained.hub import find_checkpoint
    from spectrodiff.pretrained.kinds import SPECTROGRAM

    found = open_checkpoint(find_checkpoint(options.source))
    if found.format == options.to:
        raise InputError(f"{options.source} is in the format of {options.to} already; copy it")
    found.specs()  # raises before anything is written
    with replacing_folder(options.destination) as folder:
        if options.to == "diffusers":
            has_vocoder = found.onnx_vocoder is not None
            diffusers.write(folder, found.config, found.arrays, with_vocoder=has_vocoder)
        else:
            card = {**found.card, "converted_from": found.format}
            native.write(folder, SPECTROGRAM, found.arrays, found.config, card)
        if found.onnx_vocoder is not None:
            (folder / diffusers.ONNX_VOCODER).parent.mkdir()
            shutil.copyfile(found.onnx_vocoder, folder / diffusers.ONNX_VOCODER)
    print(f"{options.destination}: {found.format} to {options.to}")
    if options.to == "diffusers" and (left := _left_behind(found)):
        print(f"{left} stay behind: {options.to} has no place for them")
    if vocoder := _own_vocoder(found):
        print(f"the {vocoder} in {found.folder} stays there: {options.to} has no place for it")


def _own_vocoder(found) -> str | None:
    """Returns the title of the vocoder in our format in the folder of the weights, or None."""
    from spectrodiff.pretrained.kinds import vocoder_kind

    kind = vocoder_kind(found.folder)
    return None if kind is None else kind.title


def _left_behind(found) -> str:
    """Describes what a conversion loses: sampling defaults and the card."""
    sampling = found.config.decoder.sampling
    parts = [
        *([f"its sampling defaults {json.dumps(to_dict(sampling))}"] if sampling != type(sampling)() else []),
        *([f"its card {json.dumps(found.card)}"] if found.card else []),
    ]
    return " and ".join(parts)
