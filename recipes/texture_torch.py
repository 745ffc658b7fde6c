"""Trains the U-Net of a texture decoder with PyTorch in bfloat16, on CPUs that have instructions for it.

CPUs with AVX-512 BF16 or AMX (`lscpu | grep -E "avx512_bf16|amx_bf16"`) multiply bfloat16 several times as fast as
float32. PyTorch uses these instructions in convolutions, XLA does not. The mean of each window, which has to be trained
already, is computed once, by `windows`; `train` then needs nothing else. A run that is killed continues.

pip install torch
python recipes/texture_torch.py windows --gin_file demo.gin --checkpoint demo --data_dir data --out runs/windows
python recipes/texture_torch.py train --gin_file demo.gin --checkpoint demo --windows runs/windows --out runs/texture
python recipes/texture_torch.py train --gin_file demo_student.gin --checkpoint runs/texture/export \
    --teacher runs/texture/export --windows runs/windows --out runs/student
python recipes/pack_weights.py runs/texture/export out

The options of the texture, such as its channels and its process, are those of the config. With a teacher, the config is
one of distillation. The rate, the batch and the number of steps are options of this command, because the config's are
also those of the mean.
"""

import argparse
import dataclasses
import itertools
import math
import os
import pathlib
import sys
import time

import gin
import jax
import numpy as np
import torch
from flax import nnx
from torch.nn import functional
from tqdm import tqdm

from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.errors import InputError
from spectrodiff.models.texture_decoder import CONTEXT_FRAMES, FRACTION_AT_START, TextureConfig
from spectrodiff.models.unet import EMBEDDING, LOGSNR_SCALE, LONGEST
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import write
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.spectrogram import SpectrogramTask

PREFIX = "decoder.texture."  # of the U-Net's parameters
FIELDS = ("x0", "mean", "sketch", "before", "known", "mask")  # of a window; mels are normalised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    windows = commands.add_parser("windows", help="store windows and their means")
    windows.add_argument("--data_dir", default="data")
    windows.add_argument("--windows", type=int, default=10_000, help="of training")
    windows.set_defaults(run=store_windows)
    training = commands.add_parser("train", help="train the U-Net on stored windows")
    training.add_argument("--windows", type=pathlib.Path, required=True, help="what `windows` wrote")
    training.add_argument("--teacher", help="distil from these weights, as the config says")
    training.add_argument("--new", action="store_true", help="do not start from the checkpoint's U-Net")
    training.add_argument("--steps", type=int, default=5000)
    training.add_argument("--batch", type=int, default=8)
    training.add_argument("--rate", type=float, default=1e-3, help="of Adam, after warmup; it falls to 0 at the end")
    training.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient")
    training.add_argument("--average", type=float, default=0.999, help="decay of the average of the weights")
    training.add_argument("--every", type=int, default=250, help="steps between held-out losses, which are also saved")
    training.add_argument("--threads", type=int, default=os.cpu_count())
    training.set_defaults(run=train)
    for command in (windows, training):
        command.add_argument("--gin_file", required=True)
        command.add_argument("--gin_param", action="append", default=[])
        command.add_argument("--checkpoint", required=True, help="weights with the mean's network")
        command.add_argument("--out", type=pathlib.Path, required=True)
    options = parser.parse_args()
    try:
        options.run(options)
    except InputError as error:
        print(f"texture_torch.py: {error}", file=sys.stderr)
        sys.exit(2)


def read_task(options: argparse.Namespace, *params: str) -> SpectrogramTask:
    """Returns the task of the config, which has to be one of a texture decoder."""
    read_config([options.gin_file], [*options.gin_param, *params])
    task = gin.get_bindings("train")["task"]
    if not isinstance(getattr(task, "config", None) and task.config.decoder, TextureConfig):
        raise InputError(f"{options.gin_file} does not configure a texture decoder")
    return task


# Windows


def store_windows(options: argparse.Namespace) -> None:
    """Writes the inputs and targets of the U-Net for held-out windows, and for those of training, as arrays."""
    task = read_task(options, f"Mixture.data_dir = {options.data_dir!r}")
    model = task.load(options.checkpoint)
    graph, state = nnx.split(model)

    @jax.jit
    def evaluate(state, batch):
        model = nnx.merge(graph, state)
        decoder = model.decoder
        encoded = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)
        return {"x0": decoder.config.normalise(batch["target"]), **decoder.cache(encoded)._asdict()}

    def save(name, batches, count):
        folder, arrays, done = options.out / f"{name}.part", {}, 0  # renamed when it is complete
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(total=count, desc=name, unit="window") as progress:
            while done < count:
                batch = next(batches)
                batch = {key: batch[key] for key in ("tokens", "context", "context_mask", "target", "target_mask")}
                values = {**evaluate(state, batch), "mask": batch["target_mask"]}
                size = min(count - done, len(batch["target_mask"]))
                for field in FIELDS:
                    value = np.asarray(values[field])[:size]
                    if not done:
                        path, shape = folder / f"{field}.npy", (count, *value.shape[1:])
                        arrays[field] = np.lib.format.open_memmap(path, "w+", np.float16, shape)
                    arrays[field][done : done + size] = value
                done += size
                progress.update(size)
        folder.rename(options.out / name)

    heldout, size = task.heldout, task.batch_size
    count = len(heldout["target"])
    save("heldout", ({k: v[i : i + size] for k, v in heldout.items()} for i in range(0, count, size)), count)
    save("train", task.batches(seed=0), options.windows)


def load_windows(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays that `store_windows` wrote, of windows [n, t, m] and their masks [n, t]."""
    try:
        return {field: np.load(folder / f"{field}.npy", "r") for field in FIELDS}
    except OSError as error:
        raise InputError(f"{folder} has no windows; write them by `texture_torch.py windows`") from error


def random_crops(windows: dict[str, np.ndarray], frames: int, batch: int, rng: np.random.Generator):
    """Returns `batch` random crops of `frames` frames, chosen as `TextureDecoder` chooses them."""
    rows = rng.integers(len(windows["x0"]), size=batch)
    starts = rng.integers(windows["x0"].shape[1] - frames + 1, size=batch)
    starts[rng.random(batch) < FRACTION_AT_START] = 0
    return crops(windows, rows, starts, frames)


def crops(windows: dict[str, np.ndarray], rows: np.ndarray, starts: np.ndarray, frames: int) -> dict[str, torch.Tensor]:
    """Returns crops of the windows `rows`, whose context are the frames before them, of the window or before it."""
    found = {field: [] for field in FIELDS}
    for row, start in zip(rows, starts, strict=True):
        for field in ("x0", "mean", "sketch", "mask"):
            found[field].append(windows[field][row, start : start + frames])
        past = windows["x0"][row, :start]
        found["before"].append(np.concatenate([windows["before"][row], past])[-CONTEXT_FRAMES:])
        found["known"].append(np.concatenate([windows["known"][row], np.ones_like(past)])[-CONTEXT_FRAMES:])
    return {field: torch.from_numpy(np.stack(values).astype(np.float32)) for field, values in found.items()}


# The U-Net, with the names of parameters, the layout and the operations of spectrodiff/models/unet.py


class Dense(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x):
        return x @ self.kernel


class Conv(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        # Over outputs, inputs, bins and frames; ours is over frames, bins, inputs and outputs.
        self.kernel = torch.nn.Parameter(torch.randn(outputs, inputs, 3, 3) / (9 * inputs) ** 0.5)
        self.bias = torch.nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        # PyTorch's convention is channels first, but here they stay last in memory.
        return functional.conv2d(x.permute(0, 3, 1, 2), self.kernel, self.bias, padding=1).permute(0, 2, 3, 1)


class RMSNorm(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale


class ResidualBlock(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm_in, self.conv_in = RMSNorm(inputs), Conv(inputs, outputs)
        self.film = Dense(EMBEDDING, 2 * outputs)
        self.norm_out, self.conv_out = RMSNorm(outputs), Conv(outputs, outputs)
        self.shortcut = Dense(inputs, outputs) if inputs != outputs else None

    def forward(self, x, noise):
        h = self.conv_in(functional.silu(self.norm_in(x)))
        scale, shift = self.film(noise)[:, None, None].chunk(2, -1)
        h = self.conv_out(functional.silu(self.norm_out(h) * (1.0 + scale) + shift))
        return h + (x if self.shortcut is None else self.shortcut(x))


class UNet(torch.nn.Module):
    def __init__(self, inputs: int, channels: tuple[int, ...], patch: int, bins: int, blocks: int = 2):
        super().__init__()
        self.patch = patch
        self.enter = Conv(inputs * patch**2, channels[0])
        self.bins = torch.nn.Parameter(torch.zeros(bins // patch, channels[0]))
        self.embed = Dense(EMBEDDING, EMBEDDING)

        def scales(previous):
            return torch.nn.ModuleList(
                torch.nn.ModuleList(ResidualBlock(previous[i] if k == 0 else width, width) for k in range(blocks))
                for i, width in enumerate(channels)
            )

        below = [*channels[1:], channels[-1]]
        self.down = scales([channels[0], *channels])
        self.up = scales([wide + width for wide, width in zip(below, channels, strict=True)])
        self.norm, self.leave = RMSNorm(channels[0]), Conv(channels[0], patch**2)
        rates = np.exp(-np.log(LONGEST) * np.arange(EMBEDDING // 2) / (EMBEDDING // 2 - 1))
        self.rates = torch.from_numpy(rates.astype(np.float32))

    def forward(self, planes, logsnr):
        """Returns the output plane [b, t, m] for `planes` [b, t, m, c] and one log-SNR per row."""
        angles = LOGSNR_SCALE * logsnr[:, None] * self.rates
        noise = functional.silu(self.embed(torch.cat([angles.sin(), angles.cos()], -1)))
        batch, frames, bins, _ = planes.shape
        p = self.patch
        squares = planes.reshape(batch, frames // p, p, bins // p, p, -1).permute(0, 3, 1, 2, 4, 5)
        x = self.enter(squares.reshape(batch, bins // p, frames // p, -1)) + self.bins[:, None]
        skips = []
        for scale, blocks in enumerate(self.down):
            if scale:
                x = functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            for block in blocks:
                x = block(x, noise)
            skips.append(x)
        for scale, blocks in reversed(list(enumerate(self.up))):
            if scale < len(skips) - 1:
                x = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
            x = torch.cat([x, skips[scale]], -1)
            for block in blocks:
                x = block(x, noise)
        squares = self.leave(functional.silu(self.norm(x))).float().reshape(batch, bins // p, frames // p, p, p)
        return squares.permute(0, 2, 3, 1, 4).reshape(batch, frames, bins)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """Returns a parameter of ours as PyTorch's; only kernels of convolutions differ."""
    array = torch.from_numpy(np.array(array, np.float32))
    return array.permute(3, 2, 1, 0) if array.ndim == 4 else array


def to_ours(tensor: torch.Tensor) -> np.ndarray:
    """Returns a parameter of PyTorch as ours, the inverse of `to_torch`."""
    return (tensor.permute(3, 2, 1, 0) if tensor.ndim == 4 else tensor).contiguous().float().numpy()


# The objective `Preconditioned` for the residual r = x0 - mean, and what else is of spectrodiff/diffusion


@dataclasses.dataclass(frozen=True)
class Texture:
    """A U-Net with the arithmetic of its objective. Residuals and their noised versions y are [b, t, m]."""

    unet: torch.nn.Module
    config: TextureConfig

    def network(self, y, logsnr, crop):
        """Returns the network's output for y = alpha r + sigma eps at one log-SNR [b, 1, 1] per row."""
        alpha, sigma = level(logsnr)
        z = y / self._deviation(alpha, sigma)
        mean, before, known = crop["mean"], crop["before"], crop["known"]
        slope = torch.diff(mean, dim=1, prepend=mean[:, :1]) / self.config.process.objective.std
        zeros = torch.zeros_like
        context = torch.stack([zeros(before), before, zeros(before), before, known], -1)
        window = torch.stack([z, mean, slope, crop["sketch"], zeros(mean)], -1)
        with torch.autocast("cpu", torch.bfloat16):
            return self.unet(torch.cat([context, window], 1), logsnr[:, 0, 0])[:, before.shape[1] :]

    def loss(self, r, y, eps, logsnr, crop):
        """Returns the mean squared error over valid frames, each example having the same weight."""
        std, (alpha, sigma) = self.config.process.objective.std, level(logsnr)
        target = (sigma * r / std - alpha * std * eps) / self._deviation(alpha, sigma)
        error = (self.network(y, logsnr, crop) - target).square().mean(-1) * crop["mask"]
        return (error.sum(-1) / crop["mask"].sum(-1).clamp(min=1)).mean()

    def denoise(self, y, logsnr, crop):
        """Returns the estimate of r, clipped such that mean + r is in the bounds of mels."""
        std, (alpha, sigma) = self.config.process.objective.std, level(logsnr)
        deviation, (low, high) = self._deviation(alpha, sigma), self.config.bounds
        skipped, output = alpha * std**2 / deviation**2 * y, sigma * std / deviation * self.network(y, logsnr, crop)
        return torch.minimum(torch.maximum(skipped + output, low - crop["mean"]), high - crop["mean"])

    def walk(self, y, logsnrs, crop):
        """Takes the teacher's steps along `logsnrs`; returns y at the last, and a function that estimates r there."""
        second_order, previous = self.config.sampling.sampler == "dpmpp", None
        for i, (now, then) in enumerate(itertools.pairwise(logsnrs)):
            r = self.denoise(y, rows(now, y), crop)
            guess = r
            if second_order and previous is not None:
                guess = r + 0.5 * (then - now) / (now - logsnrs[i - 1]) * (r - previous)
            previous = r
            (alpha, sigma), (alpha_then, sigma_then) = level(now), level(then)
            y = alpha_then * guess + sigma_then * (y - alpha * guess) / sigma
        return y, lambda: self.denoise(y, rows(logsnrs[-1], y), crop)

    def _deviation(self, alpha, sigma):
        return ((alpha * self.config.process.objective.std) ** 2 + sigma**2).sqrt()


def level(logsnr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns alpha and sigma at a log-SNR."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def rows(logsnr: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return logsnr.expand(len(y))[:, None, None]


def texture_loss(texture: Texture, crop, generator: torch.Generator, logsnr: torch.Tensor) -> torch.Tensor:
    """Returns the loss of training on data, at the log-SNRs `logsnr` [b, 1, 1]."""
    (alpha, sigma), r = level(logsnr), crop["x0"] - crop["mean"]
    eps = torch.randn(r.shape, generator=generator)
    return texture.loss(r, alpha * r + sigma * eps, eps, logsnr, crop)


def distillation_loss(
    student: Texture, teacher: Texture, substeps: int, crop, generator: torch.Generator
) -> torch.Tensor:
    """Returns the loss of progressive distillation; see `TextureDecoder.distillation_loss`."""
    ours = torch.from_numpy(np.array(student.config.process.schedule(student.config.sampling.steps)))
    end = float(np.array(teacher.config.process.schedule(teacher.config.sampling.steps))[-1])
    total = 0.0
    for index, now in enumerate(ours):
        (alpha, sigma), r = level(now), crop["x0"] - crop["mean"]
        y = alpha * r + sigma * torch.randn(r.shape, generator=generator)
        with torch.no_grad():
            if index + 1 < len(ours):
                reached, _ = teacher.walk(y, torch.linspace(float(now), float(ours[index + 1]), substeps + 1), crop)
                alpha_then, sigma_then = level(ours[index + 1])
                ratio = sigma_then / sigma
                r = (reached - ratio * y) / (alpha_then - ratio * alpha)
            else:
                r = teacher.walk(y, torch.linspace(float(now), end, substeps), crop)[1]()
        total = total + student.loss(r, y, (y - alpha * r) / sigma, rows(now, y), crop)
    return total / len(ours)


# Training


def load_unet(checkpoint: str, config: TextureConfig | None = None, new: bool = False) -> Texture:
    """Returns the texture of a checkpoint, by its own config or another."""
    found = open_checkpoint(find_checkpoint(checkpoint))
    config = config or found.config.decoder
    unet = UNet(5, config.channels, config.patch, found.arrays["decoder.texture.bins"].shape[0] * config.patch)
    if not new:
        ours = {name: PREFIX + name for name in unet.state_dict()}
        unet.load_state_dict({name: to_torch(found.arrays[theirs]) for name, theirs in ours.items()})
    return Texture(unet, config)


def train(options: argparse.Namespace) -> None:
    """Trains the U-Net; every so many steps, prints its held-out loss and saves the run and an export."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    task = read_task(options)
    if (options.teacher is None) != (task.distillation is None):
        raise InputError(f"{options.gin_file} and --teacher: give both a config of distillation and a teacher, or none")
    texture = load_unet(options.checkpoint, task.config.decoder, options.new)
    config, parameters = texture.config, dict(texture.unet.named_parameters())
    windows, heldout = (load_windows(options.windows / name) for name in ("train", "heldout"))
    compiled = dataclasses.replace(texture, unet=torch.compile(texture.unet))
    if options.teacher:
        teacher = load_unet(options.teacher)
        teacher = dataclasses.replace(teacher, unet=torch.compile(teacher.unet))

    def loss_of(texture, crop, generator, quantiles):
        if options.teacher:
            return distillation_loss(texture, teacher, task.distillation.substeps, crop, generator)
        logsnr = torch.from_numpy(np.array(config.process.levels.logsnr(np.float32(quantiles))))[:, None, None]
        return texture_loss(texture, crop, generator, logsnr)

    optimizer = torch.optim.Adam(parameters.values(), options.rate)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    step, saved = 0, options.out / "run.pt"
    options.out.mkdir(parents=True, exist_ok=True)
    if saved.exists():
        state = torch.load(saved)
        texture.unet.load_state_dict(state["parameters"])
        optimizer.load_state_dict(state["optimizer"])
        average, step = state["average"], state["step"]

    @torch.no_grad()
    def heldout_loss():
        """The loss of the averaged weights, always on the same crops, levels and noise."""
        rng, generator = np.random.default_rng(1), torch.Generator().manual_seed(1)
        trained = {name: value.detach().clone() for name, value in parameters.items()}
        texture.unet.load_state_dict(average)
        count, losses = len(heldout["x0"]), []
        for begin in range(0, count - options.batch + 1, options.batch):
            of_batch = np.arange(begin, begin + options.batch)
            starts = rng.integers(WINDOW_FRAMES - config.crop_frames + 1, size=options.batch)
            crop = crops(heldout, of_batch, starts, config.crop_frames)
            quantiles = (0.5 + np.arange(options.batch)) / options.batch
            losses.append(loss_of(compiled, crop, generator, quantiles).item())
        texture.unet.load_state_dict(trained)
        return np.mean(losses)

    print(f"step {step}: held-out loss {heldout_loss():.4f}", flush=True)
    recent, began = [], time.monotonic()
    while step < options.steps:
        rng, generator = np.random.default_rng([0, step]), torch.Generator().manual_seed(step)
        rate = options.rate * min(1.0, (step + 1) / 50) * 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        crop = random_crops(windows, config.crop_frames, options.batch, rng)
        quantiles = (rng.random() + np.arange(options.batch)) / options.batch
        loss = loss_of(compiled, crop, generator, quantiles)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip)
        optimizer.step()
        recent.append(loss.item())
        step += 1
        decay = min(options.average, step / (step + 10))
        for name, value in parameters.items():
            average[name].lerp_(value.detach(), 1.0 - decay)
        if step % options.every == 0 or step == options.steps:
            seconds, began = time.monotonic() - began, time.monotonic()
            figures = f"loss {np.mean(recent):.4f}, held-out loss {heldout_loss():.4f}"
            print(f"step {step}: {figures}, {seconds / len(recent):.2f} s a step", flush=True)
            recent, began = [], time.monotonic()
            state = {"parameters": texture.unet.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "average": average, "step": step}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
            export(options.out / "export", options.checkpoint, task, average)


def export(folder: pathlib.Path, checkpoint: str, task: SpectrogramTask, average: dict[str, torch.Tensor]) -> None:
    """Writes the checkpoint with the U-Net's averaged weights, and with the config of the task."""
    found = open_checkpoint(find_checkpoint(checkpoint))
    trained = {PREFIX + name: to_ours(value) for name, value in average.items()}
    arrays = {name: trained.get(name, found.arrays[name]) for name in found.shapes()}
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    write(folder, SPECTROGRAM, arrays, task.config, found.card)


if __name__ == "__main__":
    main()
