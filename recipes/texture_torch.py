"""Trains the U-Net of a texture decoder with PyTorch in bfloat16, for CPUs that have instructions for it.

On CPUs with AVX-512 BF16 or AMX (`lscpu | grep -E "avx512_bf16|amx_bf16"`), PyTorch convolves bfloat16 several times as
fast as float32; XLA does not use these instructions. The network that predicts the mean must be trained. `windows`
evaluates it once and stores its predictions; `train` trains the U-Net on random crops of the stored windows, and
exports the whole model every so many steps. Both go on where they were killed.

pip install torch
python recipes/texture_torch.py windows --gin_file demo.gin --checkpoint demo --data_dir data --out runs/windows
python recipes/texture_torch.py train --gin_file demo.gin --checkpoint demo --windows runs/windows --out runs/texture
python recipes/texture_torch.py train --gin_file demo_student.gin --checkpoint runs/texture/export \
    --gin_param "Distillation.teacher = 'runs/texture/export'" --windows runs/windows --out runs/student

The config determines the network, its diffusion process and, in `demo_student.gin`, the distillation. Learning rate,
batch size and number of steps are options of `train`.
"""

import argparse
import dataclasses
import itertools
import math
import pathlib
import pickle
import sys
import time
from collections.abc import Callable, Iterator

import gin
import jax
import numpy as np
import torch
from flax import nnx
from torch.nn import functional
from tqdm import tqdm

from spectrodiff.audio.mel import MEL_BINS
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.errors import InputError
from spectrodiff.files import replacing, replacing_folder
from spectrodiff.models.layers import Buffer
from spectrodiff.models.texture_decoder import CONTEXT_FRAMES, FRACTION_AT_START, TextureConfig
from spectrodiff.models.unet import EMBEDDING, LOGSNR_SCALE, LONGEST
from spectrodiff.pretrained.kinds import SPECTROGRAM
from spectrodiff.pretrained.native import build, flatten
from spectrodiff.training.gin_config import read_config
from spectrodiff.training.spectrogram import SpectrogramTask

PREFIX = "decoder.texture."  # of the names of the U-Net's parameters
FIELDS = ("x0", "mean", "sketch", "before", "known", "mask")  # of a stored window: TextureCache, its target and mask
WARMUP = 50  # steps

Crops = dict[str, torch.Tensor]  # FIELDS of a batch of crops, float32; `mask` is [b, t], the others are [b, t, m]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    windows = commands.add_parser("windows", help="store windows with the predicted means")
    windows.add_argument("--data_dir", default="data")
    windows.add_argument("--count", type=_positive(int), default=10_000, help="of windows for training, 0.2 MB each")
    windows.set_defaults(run=store_windows)
    training = commands.add_parser("train", help="train the U-Net on stored windows")
    training.add_argument("--windows", type=pathlib.Path, required=True, help="the folder that `windows` wrote")
    training.add_argument("--steps", type=_positive(int), default=5000)
    training.add_argument("--batch", type=_positive(int), default=8)
    training.add_argument("--rate", type=_positive(float), default=1e-3, help="of Adam; decays to 0 by a cosine")
    training.add_argument("--clip", type=_positive(float), default=1.0, help="the largest norm of gradients")
    training.add_argument("--ema_decay", type=float, default=0.999, help="of the exported average of the parameters")
    training.add_argument("--every", type=_positive(int), default=250, help="steps between held-out losses and exports")
    training.add_argument("--threads", type=_positive(int), help="of the CPU (default: PyTorch's choice)")
    training.set_defaults(run=train)
    for command in (windows, training):
        command.add_argument("--gin_file", required=True)
        command.add_argument("--gin_param", action="append", default=[])
        command.add_argument("--checkpoint", required=True, help="the weights to start from")
        command.add_argument("--out", type=pathlib.Path, required=True, help="the folder to write")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        options.run(options)
    except (InputError, OSError) as error:
        print(f"texture_torch.py: {error}", file=sys.stderr)
        sys.exit(2)


def _positive(kind: type) -> Callable[[str], int | float]:
    def parse(text):
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def read_task(options: argparse.Namespace, *params: str) -> SpectrogramTask:
    """Returns the task of the config; raises InputError if it does not train a texture decoder."""
    read_config([options.gin_file], [*options.gin_param, *params])
    task = gin.get_bindings("train")["task"]
    if not isinstance(task, SpectrogramTask) or not isinstance(task.config.decoder, TextureConfig):
        raise InputError(f"{options.gin_file} does not train a texture decoder")
    return task


# ---- windows


def store_windows(options: argparse.Namespace) -> None:
    """Stores the target and the inputs of the U-Net for the held-out windows, and for `options.count` of training.

    Each is a folder of arrays in float16, one for each of FIELDS, whose first axis is that of windows.
    """
    task = read_task(options, f"Mixture.data_dir = {options.data_dir!r}")
    graph, state = nnx.split(task.load(options.checkpoint))

    @jax.jit
    def fields(state, batch):
        model = nnx.merge(graph, state)
        encoded = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES)
        x0 = model.decoder.config.normalise(batch["target"])
        return {"x0": x0, "mask": batch["target_mask"], **model.decoder.cache(encoded)._asdict()}

    def store(name: str, count: int, batches: Iterator[dict[str, np.ndarray]]) -> None:
        with replacing_folder(options.out / name) as folder, tqdm(total=count, desc=name, unit="window") as progress:
            arrays, done = {}, 0
            while done < count:
                batch = next(batches)
                used = ("tokens", "context", "context_mask", "target", "target_mask")
                for field, values in fields(state, {name: batch[name] for name in used}).items():
                    values = np.asarray(values)[: count - done]
                    if not done:
                        path, shape = folder / f"{field}.npy", (count, *values.shape[1:])
                        arrays[field] = np.lib.format.open_memmap(path, "w+", np.float16, shape)
                    arrays[field][done : done + len(values)] = values
                done += len(values)
                progress.update(len(values))

    if not (options.out / "heldout").exists():
        heldout, size = task.heldout, task.batch_size
        count = len(heldout["target"])
        store("heldout", count, ({k: v[i : i + size] for k, v in heldout.items()} for i in range(0, count, size)))
    if not (options.out / "train").exists():
        store("train", options.count, task.batches(seed=0))


def load_windows(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns stored windows as arrays on disk; raises InputError if there are none."""
    try:
        return {field: np.load(folder / f"{field}.npy", "r") for field in FIELDS}
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} has no windows; store them by `texture_torch.py windows`") from error


def random_starts(count: int, crop_frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the first frames [count] of random crops, which are chosen as `TextureDecoder.loss` does."""
    starts = rng.integers(WINDOW_FRAMES - crop_frames + 1, size=count)
    return np.where(rng.random(count) < FRACTION_AT_START, 0, starts)


def crops(windows: dict[str, np.ndarray], indices: np.ndarray, starts: np.ndarray, crop_frames: int) -> Crops:
    """Returns crops of some windows [b], which begin at `starts` [b].

    Their context, `before` and `known`, is the end of the window's context followed by the frames before the crop.
    """
    found = {field: [] for field in FIELDS}
    for index, start in zip(indices, starts, strict=True):
        for field in ("x0", "mean", "sketch", "mask"):
            found[field].append(windows[field][index, start : start + crop_frames])
        earlier = windows["x0"][index, :start]
        found["before"].append(np.concatenate([windows["before"][index], earlier])[-CONTEXT_FRAMES:])
        found["known"].append(np.concatenate([windows["known"][index], np.ones_like(earlier)])[-CONTEXT_FRAMES:])
    return {field: torch.from_numpy(np.stack(values).astype(np.float32)) for field, values in found.items()}


# ---- the network of spectrodiff/models/unet.py, with the same names of parameters


class Dense(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.empty(inputs, outputs))

    def forward(self, x):
        return x @ self.kernel


class Conv(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.kernel = torch.nn.Parameter(torch.empty(outputs, inputs, 3, 3))  # the last two axes: bins, frames
        self.bias = torch.nn.Parameter(torch.empty(outputs))

    def forward(self, x):
        # Permuted, the channels are first for PyTorch, but stay last in memory, for which it has faster convolutions.
        return functional.conv2d(x.permute(0, 3, 1, 2), self.kernel, self.bias, padding=1).permute(0, 2, 3, 1)


class RMSNorm(torch.nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.empty(width))

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
    """The network of `models.unet.UNet`, whose parameters have to be loaded."""

    def __init__(self, inputs: int, channels: tuple[int, ...], patch: int, blocks: int = 2):
        super().__init__()
        self.patch = patch
        self.enter = Conv(inputs * patch**2, channels[0])
        self.bins = torch.nn.Parameter(torch.empty(MEL_BINS // patch, channels[0]))
        self.embed = Dense(EMBEDDING, EMBEDDING)

        def scales(widths):
            return torch.nn.ModuleList(
                torch.nn.ModuleList(ResidualBlock(widths[i] if k == 0 else width, width) for k in range(blocks))
                for i, width in enumerate(channels)
            )

        below = [*channels[1:], channels[-1]]
        self.down = scales([channels[0], *channels])
        self.up = scales([wide + width for wide, width in zip(below, channels, strict=True)])
        self.norm, self.leave = RMSNorm(channels[0]), Conv(channels[0], patch**2)
        rates = np.exp(-np.log(LONGEST) * np.arange(EMBEDDING // 2) / (EMBEDDING // 2 - 1))
        self.rates = torch.from_numpy(rates.astype(np.float32))

    def forward(self, planes, logsnr):
        """Returns the output plane [b, t, m] for `planes` [b, t, m, c] and the log-SNR of each row, [b]."""
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
    """Returns a parameter of `models.unet.UNet` as one of PyTorch; only kernels of convolutions differ."""
    tensor = torch.from_numpy(np.array(array, np.float32))
    return tensor.permute(3, 2, 1, 0) if tensor.ndim == 4 else tensor


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    return (tensor.permute(3, 2, 1, 0) if tensor.ndim == 4 else tensor).contiguous().float().numpy()


# ---- the diffusion process, for the residual r = x0 - mean


def level(logsnr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns alpha and sigma at a log-SNR."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def per_row(logsnr: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a scalar log-SNR as one for each row of `like`, [b, 1, 1]."""
    return logsnr.expand(len(like))[:, None, None]


@dataclasses.dataclass(frozen=True)
class Texture:
    """A U-Net with the preconditioning of `Preconditioned`.

    In all methods, the residual `r`, the noise `eps` and y = alpha r + sigma eps are [b, t, m], `logsnr` is [b, 1, 1],
    and `crop` has the other inputs.
    """

    unet: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    config: TextureConfig

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], config: TextureConfig) -> "Texture":
        """Returns the texture of a model with the parameters `arrays`, by their names in our checkpoints."""
        unet = UNet(5, config.channels, config.patch)
        unet.load_state_dict({name: to_torch(arrays[PREFIX + name]) for name in unet.state_dict()})
        return cls(unet, config)

    def _std_and_deviation(self, alpha, sigma) -> tuple[float, torch.Tensor]:
        """Returns the standard deviations of r and of y."""
        std = self.config.process.objective.std
        return std, ((alpha * std) ** 2 + sigma**2).sqrt()

    def output(self, y: torch.Tensor, logsnr: torch.Tensor, crop: Crops) -> torch.Tensor:
        """Returns the output of the U-Net, [b, t, m]."""
        std, deviation = self._std_and_deviation(*level(logsnr))
        mean, before = crop["mean"], crop["before"]
        slope = torch.diff(mean, dim=1, prepend=mean[:, :1]) / std
        zeros = torch.zeros_like(before)
        context = torch.stack([zeros, before, zeros, before, crop["known"]], -1)
        window = torch.stack([y / deviation, mean, slope, crop["sketch"], torch.zeros_like(mean)], -1)
        with torch.autocast("cpu", torch.bfloat16):
            return self.unet(torch.cat([context, window], 1), logsnr[:, 0, 0])[:, before.shape[1] :]

    def loss(self, r, eps, logsnr, crop: Crops) -> torch.Tensor:
        """Returns the squared error of each example, [b], averaged over its valid frames."""
        alpha, sigma = level(logsnr)
        std, deviation = self._std_and_deviation(alpha, sigma)
        target = (sigma * r / std - alpha * std * eps) / deviation
        output = self.output(alpha * r + sigma * eps, logsnr, crop)
        error = (output - target).square().mean(-1) * crop["mask"]
        return error.sum(-1) / crop["mask"].sum(-1).clamp(min=1)

    def denoise(self, y, logsnr, crop: Crops) -> torch.Tensor:
        """Returns the estimate of r, clipped so that mean + r is within the range of mels."""
        alpha, sigma = level(logsnr)
        std, deviation = self._std_and_deviation(alpha, sigma)
        r = alpha * std**2 / deviation**2 * y + sigma * std / deviation * self.output(y, logsnr, crop)
        low, high = self.config.bounds
        return torch.minimum(torch.maximum(r, low - crop["mean"]), high - crop["mean"])

    def walk(self, y, logsnrs: torch.Tensor, crop: Crops) -> torch.Tensor:
        """Returns y at the last of `logsnrs` [n], reached by the steps of the config's sampler; see `samplers.walk`."""
        previous = None
        for i, (now, then) in enumerate(itertools.pairwise(logsnrs)):
            r = extrapolated = self.denoise(y, per_row(now, y), crop)
            if self.config.sampling.sampler == "dpmpp" and previous is not None:
                extrapolated = r + 0.5 * (then - now) / (now - logsnrs[i - 1]) * (r - previous)
            previous = r
            (alpha, sigma), (alpha_then, sigma_then) = level(now), level(then)
            y = alpha_then * extrapolated + sigma_then * (y - alpha * extrapolated) / sigma
        return y


def distillation_target(teacher: Texture, substeps: int, logsnrs: torch.Tensor, index: int, y, crop: Crops):
    """Returns the estimate of r that step `index` of a student with the schedule `logsnrs` shall learn, at y.

    See `samplers.one_step_target` and `TextureDecoder.distillation_loss`.
    """
    now = logsnrs[index]
    if index + 1 == len(logsnrs):
        end = teacher.config.process.schedule(teacher.config.sampling.steps)[-1].item()
        last = torch.linspace(now.item(), end, substeps)
        return teacher.denoise(teacher.walk(y, last, crop), per_row(last[-1], y), crop)
    then = logsnrs[index + 1]
    reached = teacher.walk(y, torch.linspace(now.item(), then.item(), substeps + 1), crop)
    (alpha, sigma), (alpha_then, sigma_then) = level(now), level(then)
    ratio = sigma_then / sigma
    return (reached - ratio * y) / (alpha_then - ratio * alpha)


def distillation_loss(student: Texture, teacher: Texture, substeps: int, crop: Crops, eps) -> torch.Tensor:
    """Returns the loss of progressive distillation of each example, [b], averaged over the student's steps."""
    logsnrs = torch.from_numpy(np.array(student.config.process.schedule(student.config.sampling.steps)))
    losses = []
    for index, now in enumerate(logsnrs):
        alpha, sigma = level(now)
        y = alpha * (crop["x0"] - crop["mean"]) + sigma * eps[index]
        with torch.no_grad():
            r = distillation_target(teacher, substeps, logsnrs, index, y, crop)
        losses.append(student.loss(r, (y - alpha * r) / sigma, per_row(now, y), crop))
    return sum(losses) / len(losses)


# ---- training


def train(options: argparse.Namespace) -> None:
    """Trains the U-Net, and prints its held-out loss, saves the run and exports the model every so many steps."""
    if options.threads:
        torch.set_num_threads(options.threads)
    task = read_task(options)
    arrays = flatten(nnx.state(task.load(options.checkpoint), nnx.Any(nnx.Param, Buffer)))
    config, teacher = task.config.decoder, None
    texture = Texture.of(arrays, config)
    unet, parameters = texture.unet, dict(texture.unet.named_parameters())
    texture = dataclasses.replace(texture, unet=torch.compile(unet))
    if task.distillation is not None:
        found = task.distillation.open_teacher()
        teacher = Texture.of(found.arrays, found.config.decoder)
        teacher = dataclasses.replace(teacher, unet=torch.compile(teacher.unet))
    windows, heldout = (load_windows(options.windows / name) for name in ("train", "heldout"))

    def losses(crop: Crops, quantiles: np.ndarray, generator: torch.Generator) -> torch.Tensor:
        count = 1 if teacher is None else config.sampling.steps
        eps = torch.randn((count, *crop["x0"].shape), generator=generator)
        if teacher is not None:
            return distillation_loss(texture, teacher, task.distillation.substeps, crop, eps)
        logsnr = torch.from_numpy(np.array(config.process.levels.logsnr(np.float32(quantiles))))
        return texture.loss(crop["x0"] - crop["mean"], eps[0], logsnr[:, None, None], crop)

    @torch.no_grad()
    def heldout_loss() -> float:
        """Returns the loss of the average on all held-out windows, each with always the same crop, level and noise."""
        count, generator = len(heldout["x0"]), torch.Generator().manual_seed(1)
        starts = random_starts(count, config.crop_frames, np.random.default_rng(1))
        quantiles = (0.5 + np.arange(count)) * 0.5 * (5**0.5 - 1) % 1.0  # evenly spread, whatever the number of windows
        trained = {name: value.detach().clone() for name, value in parameters.items()}
        unet.load_state_dict(average)
        total = 0.0
        for begin in range(0, count, options.batch):
            chosen = np.arange(begin, min(begin + options.batch, count))
            crop = crops(heldout, chosen, starts[chosen], config.crop_frames)
            total += losses(crop, quantiles[chosen], generator).sum().item()
        unet.load_state_dict(trained)
        return total / count

    optimizer = torch.optim.Adam(parameters.values(), options.rate)
    average = {name: value.detach().clone() for name, value in parameters.items()}
    path = options.out / "run.pt"
    settings = {name: str(value) for name, value in vars(options).items() if name not in ("run", "out", "threads")}
    settings["gin_param"] = gin.config_str()
    step = 0
    if path.exists():
        saved = load_run(path, settings)
        unet.load_state_dict(saved["parameters"])
        optimizer.load_state_dict(saved["optimizer"])
        average, step = saved["average"], saved["step"]

    def export() -> None:
        trained = {PREFIX + name: to_numpy(value) for name, value in average.items()}
        model = build(SPECTROGRAM, task.config, {**arrays, **trained}, options.checkpoint)
        task.save(options.out / "export", model, {"steps": step, "examples": step * options.batch})

    print(f"step {step}: held-out loss {heldout_loss():.4f}", flush=True)
    recent, began = [], time.monotonic()
    while step < options.steps:
        rng, generator = np.random.default_rng([0, step]), torch.Generator().manual_seed(step)
        decay = 0.5 * (1.0 + math.cos(math.pi * step / options.steps))
        for group in optimizer.param_groups:
            group["lr"] = options.rate * decay * min(1.0, (step + 1) / WARMUP)
        chosen = rng.integers(len(windows["x0"]), size=options.batch)
        crop = crops(windows, chosen, random_starts(options.batch, config.crop_frames, rng), config.crop_frames)
        quantiles = (rng.random() + np.arange(options.batch)) / options.batch
        loss = losses(crop, quantiles, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), options.clip)
        step += 1
        if norm.isfinite():
            optimizer.step()
            ema_decay = min(options.ema_decay, step / (step + 9))
            for name, value in parameters.items():
                average[name].lerp_(value.detach(), 1.0 - ema_decay)
        recent.append(loss.item())
        if step % options.every == 0 or step == options.steps:
            speed = (time.monotonic() - began) / len(recent)
            figures = f"loss {np.mean(recent):.4f}, held-out loss {heldout_loss():.4f}"
            state = {"parameters": unet.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            with replacing(path) as temporary:
                torch.save({**state, "step": step, "settings": settings}, temporary)
            export()
            print(f"step {step}: {figures}, {speed:.2f} s a step", flush=True)
            recent, began = [], time.monotonic()
    export()  # also where the run was killed after its last step


def load_run(path: pathlib.Path, settings: dict[str, str]) -> dict:
    """Returns a saved run; raises InputError if it is damaged, or is of other settings."""
    try:
        saved = torch.load(path, weights_only=True)
        theirs = saved["settings"]
    except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged; remove it to begin again") from error
    for name, value in settings.items():
        if theirs.get(name) != value:
            raise InputError(f"{path} was trained with another --{name}; choose another --out, or the same options")
    return saved


if __name__ == "__main__":
    main()
