"""`info` and `convert`: what a checkpoint is, and the same in another format."""

import contextlib
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from spectrodiff.errors import InputError

# Width, heads, head dim, MLP width and layers of configs/NAME.gin.
SIZES = {"small": (512, 6, 64, 1024, 8), "base": (768, 12, 64, 2048, 12), "large": (1024, 16, 64, 2816, 24)}


def add(commands) -> None:
    _add_info(commands)
    _add_convert(commands)


def _add_info(commands) -> None:
    parser = commands.add_parser("info", help="tell what a checkpoint is")
    parser.add_argument("checkpoint", metavar="PATH", help="folder or name of the weights, or hf://owner/name")
    parser.set_defaults(run=_info)


def _add_convert(commands) -> None:
    parser = commands.add_parser("convert", help="write a checkpoint in another format")
    parser.add_argument("source", metavar="SRC", help="folder or name of the weights, or hf://owner/name")
    parser.add_argument("destination", metavar="DST", help="folder to make, which must not exist or be empty")
    parser.add_argument("--to", required=True, choices=("spectrodiff", "diffusers"), help="the format to write")
    parser.set_defaults(run=_convert)


def _info(options) -> None:
    from spectrodiff.pretrained import native
    from spectrodiff.pretrained.formats import open_checkpoint
    from spectrodiff.pretrained.hub import find_checkpoint

    found = open_checkpoint(find_checkpoint(options.checkpoint))
    model, tokenizer = found.config.model, found.config.tokenizer
    layers = {"notes": model.note_layers, "decoder": model.decoder_layers}
    if model.with_context:
        layers["context"] = model.context_layers
    sizes = {(model.width, model.heads, model.head_dim, model.mlp_width, count) for count in layers.values()}
    name = next((name for name, size in SIZES.items() if sizes == {size}), "none of " + ", ".join(SIZES))
    ours = [option for option in ("compact_notes", "event_times", "note_roll") if getattr(model, option)]
    for key, value in {
        "format": found.format,
        "size": name,
        "parameters": f"{sum(map(math.prod, found.shapes().values())) / 1e6:.1f} M",
        "width": f"{model.width}, {model.heads} heads of {model.head_dim}, MLP {model.mlp_width}",
        "layers": ", ".join(f"{stack} {count}" for stack, count in layers.items()),
        "vocabulary": f"{model.vocabulary_rows} embeddings, programs {tokenizer.program_map}",
        "velocity bins": tokenizer.velocity_bins,
        "step": found.card.get("steps", "not told"),
        "prediction": found.config.diffusion.prediction,
        "our options": ", ".join(ours) or "none",
        "vocoder": "MelGAN" if native.holds(found.folder, native.VOCODER) else found.onnx_vocoder or "none",
    }.items():
        print(f"{key:<14}{value}")


def _convert(options) -> None:
    from spectrodiff.pretrained import diffusers, native
    from spectrodiff.pretrained.formats import open_checkpoint
    from spectrodiff.pretrained.hub import find_checkpoint

    found = open_checkpoint(find_checkpoint(options.source))
    if found.format == options.to:
        raise InputError(f"{options.source} is in the format of {options.to} already; copy it")
    with _new_folder(pathlib.Path(options.destination)) as folder:
        if options.to == "diffusers":
            has_vocoder = found.onnx_vocoder is not None
            diffusers.write(folder, found.config, found.parameters(), with_vocoder=has_vocoder)
        else:
            card = {**found.card, "converted_from": found.format}
            native.write(folder, native.SPECTROGRAM, dict(found.parameters()), found.config, card)
        if found.onnx_vocoder is not None:
            (folder / diffusers.ONNX_VOCODER).parent.mkdir()
            shutil.copyfile(found.onnx_vocoder, folder / diffusers.ONNX_VOCODER)
    print(f"{options.destination}: {found.format} to {options.to}")
    if native.holds(found.folder, native.VOCODER):
        print(f"the MelGAN in {found.folder} stays there: {options.to} has no place for it")


@contextlib.contextmanager
def _new_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder beside `path`, which becomes `path` when the block succeeds and is removed otherwise.

    Raises:
      InputError: `path` is there and not an empty folder, or cannot be made.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path} is there already; name a new folder or empty it first")
    try:
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders; the result should be an ordinary one
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
