"""Evaluation of spectrogram models on held-out windows: selection, sampling, metrics, images and audio."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, LOG_CEILING, LOG_FLOOR, log_mels, scale_mel, unscale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.windows import SILENCE, cut_window
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import DecoderConfig
from spectrodiff.models.sampling import window_sampler
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.vocoder.griffin_lim import GriffinLim

NATS = (LOG_CEILING - LOG_FLOOR) / 2.0  # nats of log-mel per unit of scaled mel
BANDS = 4  # bands of time for which the loss is reported separately
_BATCH = 16  # windows per batch
_GOLDEN_RATIO = 0.5 * (5**0.5 - 1)  # the fractional parts of its multiples are a low-discrepancy sequence
_GAP = 4  # pixels of white between mels

Windows = dict[str, np.ndarray]
Mel = Float[np.ndarray, "_t m"]
Pictures = dict[str, UInt8[np.ndarray, "_h _w 3"]]
Sounds = dict[str, Float32[np.ndarray, " _s"]]


def cut_windows(mixture: Mixture, split: str, count: int, tokenizer: NoteTokenizer, tokens_per_note: int) -> Windows:
    """Cuts about `count` windows of a split, equally many per dataset and evenly spaced in each.

    The result, which is the same in every run, stacks the results of `cut_window`, with tokens truncated to the number
    needed, and adds `dataset`, the index of each window's dataset in `mixture.names`.

    Raises:
      InputError: a dataset does not exist, none has the split, or all of the windows have too many tokens.
    """
    positions = [
        [
            (part, index, start)
            for index, samples in enumerate(part.samples)
            for start in range(0, -(-samples // HOP), WINDOW_FRAMES)
        ]
        for part in mixture.heldout(split)
    ]
    shares = equal_shares([len(of_dataset) for of_dataset in positions], count)
    chosen = [
        of_dataset[i]
        for of_dataset, share in zip(positions, shares, strict=True)
        for i in np.linspace(0, len(of_dataset) - 1, share).astype(int)
    ]
    limit = tokenizer.config.max_tokens
    count_notes = tokenizer.vocabulary.count_notes
    windows = []
    for part, index, start in tqdm(chosen, "held-out windows", unit="window", delay=2.0):
        piece = open_piece(part[index])
        timeline = tokenizer.timeline(piece.notes)
        window = cut_window(piece, timeline, start, tokenizer, limit, limit // tokens_per_note)
        if window is not None:
            windows.append({**window, "dataset": np.int32(mixture.names.index(part.dataset))})
    if not windows:
        raise InputError(f"every held-out window of {', '.join(mixture.names)} has over {limit} tokens")
    needed = max(max(np.count_nonzero(w["tokens"]), tokens_per_note * count_notes(w["tokens"])) for w in windows)
    for window in windows:
        window["tokens"] = window["tokens"][: -(-needed // 512) * 512]
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def equal_shares(sizes: Sequence[int], count: int) -> list[int]:
    """Returns how many items to take from each of several groups of the given sizes, `count` in all.

    The numbers are equal, except that groups with fewer items are taken whole. They are at least 1, so that their sum
    can exceed `count`.
    """
    shares, left = [0] * len(sizes), count
    for done, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], max(1, left // (len(sizes) - done)))
        left -= shares[i]
    return shares


def pick(windows: Windows, count: int) -> Windows:
    """Returns `count` of the windows, evenly spaced, or all if there are fewer."""
    total = len(windows["tokens"])
    rows = np.linspace(0, total - 1, min(count, total)).astype(int)
    return {name: value[rows] for name, value in windows.items()}


def over_batches(function: Callable, windows: Windows) -> np.ndarray:
    """Applies `function(batch, key)` to all windows in batches, and concatenates the results.

    All batches have the same size; the last one repeats the last window. Batches and keys are the same at every call.
    """
    total = len(windows["tokens"])
    results = []
    for first in range(0, total, _BATCH):
        rows = np.minimum(np.arange(first, first + _BATCH), total - 1)
        results.append(function({name: value[rows] for name, value in windows.items()}, jax.random.key(first)))
    return np.concatenate(results)[:total]


def sample_windows(weights: tuple, decoder: DecoderConfig, windows: Windows) -> Float[np.ndarray, "w t m"]:
    """Samples the scaled mels of the windows, given their true contexts, with the sampling options of `decoder`.

    `weights` are graph and states from `nnx.split` of a `SpectrogramModel`.
    """
    graph, *states = weights
    sampler, options = window_sampler(graph), decoder.options()

    def sample(batch: Windows, key: jax.Array):
        keys = jax.random.split(key, len(batch["tokens"]))
        return sampler(states, batch["tokens"], batch["context"], batch["context_mask"], keys, options)

    return over_batches(sample, windows)


def stratified_times(count: int) -> Float32[np.ndarray, "{count} n"]:
    """Returns, for each of `count` windows, one time in each of BANDS equal bands of [0, 1).

    The offset within the band is the same in all bands; over the windows it is a low-discrepancy sequence.
    """
    offset = np.arange(count) * _GOLDEN_RATIO % 1.0
    return ((np.arange(BANDS) + offset[:, None]) / BANDS).astype(np.float32)


def _groups(windows: Windows, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " w"]]:
    """Returns masks of the windows that metrics are averaged over, by the suffix of the metrics' names.

    They are all windows and, if there are several datasets, those of each.
    """
    groups = {"": np.ones(len(windows["tokens"]), bool)}
    if len(names) > 1:
        groups |= {f"/{name}": windows["dataset"] == index for index, name in enumerate(names)}
    return {suffix: group for suffix, group in groups.items() if group.any()}


def mel_figures(windows: Windows, names: Sequence[str], sampled: Float[np.ndarray, "w t m"]) -> dict[str, float]:
    """Returns `heldout_mel_l1` and `heldout_roughness` over all windows and, if there are several, per dataset."""
    target, mask, figures = windows["target"], windows["target_mask"], {}
    for suffix, group in _groups(windows, names).items():
        figures[f"heldout_mel_l1{suffix}"] = mel_l1(sampled[group], target[group], mask[group])
        true = roughness(target[group], mask[group])
        figures[f"heldout_roughness{suffix}"] = roughness(sampled[group], mask[group]) / max(true, 1e-9)
    return figures


def loss_figures(windows: Windows, names: Sequence[str], losses: Float[np.ndarray, " w"]) -> dict[str, float]:
    """Returns `heldout_loss`, averaged over all windows and, if there are several, per dataset."""
    groups = _groups(windows, names)
    return {f"heldout_loss{suffix}": float(losses[group].mean()) for suffix, group in groups.items()}


def roughness(scaled: np.ndarray, mask: Bool[np.ndarray, "w t"]) -> float:
    """Returns the mean absolute second difference of log-mels over valid frames, in nats, given scaled mels."""
    difference = np.abs(np.diff(scaled, 2, axis=1)).mean(-1)
    return float(NATS * difference[mask[:, 2:]].mean()) if mask[:, 2:].any() else 0.0


def mel_l1(scaled: np.ndarray, target: np.ndarray, mask: Bool[np.ndarray, "*w t"]) -> float:
    """Returns the mean absolute difference of log-mels over valid frames, in nats, given scaled mels."""
    return float(NATS * np.abs(scaled - target).mean(-1)[mask].mean())


def guesses(windows: Windows) -> dict[str, float]:
    """Returns the log-mel L1 of trivial predictions of the windows, in nats.

    The predictions are the mean frame of all windows (`mean_mel`), the target of another window (`wrong_window`), and
    the mean frame of the window's context (`context_mean`).
    """
    target, mask = windows["target"], windows["target_mask"]
    context, context_mask = windows["context"], windows["context_mask"][..., None]
    frames = np.maximum(context_mask.sum(1, keepdims=True), 1)
    context_mean = (context * context_mask).sum(1, keepdims=True) / frames
    mean = target[mask].mean(0)
    context_mean = np.where(context_mask.any(1, keepdims=True), context_mean, mean)
    return {
        "mean_mel": mel_l1(np.broadcast_to(mean, target.shape), target, mask),
        "wrong_window": mel_l1(np.roll(target, 1, axis=0), target, mask),
        "context_mean": mel_l1(np.broadcast_to(context_mean, target.shape), target, mask),
    }


def side_by_side(*mels: Mel) -> UInt8[np.ndarray, "_m _w 3"]:
    """Returns an image of scaled mels side by side, one pixel per frame and mel bin, low frequencies at the bottom."""
    from matplotlib import colormaps  # pyplot would look for a display

    colours = [colormaps["magma"]((mel.T[::-1] + 1.0) / 2.0, bytes=True)[..., :3] for mel in mels]
    gap = np.full((mels[0].shape[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for colour in colours for part in (gap, colour)][1:], axis=1)


def show_windows(windows: Windows, sampled: Float[np.ndarray, "w t m"]) -> tuple[Pictures, Sounds]:
    """Returns images of each window's true mel (left) and sampled mel, and audio of both by Griffin-Lim."""
    pictures, sounds = {}, {}
    vocoder = GriffinLim()
    for i, mask in enumerate(windows["target_mask"]):
        mels = {"true": windows["target"][i][mask], "sampled": sampled[i][mask]}
        # A model that diverged may sample NaN, which becomes silence: it should not end the run.
        mels = {name: np.nan_to_num(mel, nan=SILENCE) for name, mel in mels.items()}
        pictures[f"heldout_mel/{i}"] = side_by_side(*mels.values())
        sounds |= {f"heldout_audio/{i}_{name}": _audible(mel, vocoder) for name, mel in mels.items()}
    return pictures, sounds


def _audible(scaled: Mel, vocoder: GriffinLim) -> Float32[np.ndarray, " _s"]:
    """Returns audio of a scaled mel, or silence if the vocoder rejects it, so that the run does not end."""
    try:
        return vocoder(unscale_mel(scaled))
    except InputError:
        return np.zeros(HOP * len(scaled), np.float32)


def show_audio(true: Float[np.ndarray, "n s"], made: Float[np.ndarray, "n s"]) -> tuple[Pictures, Sounds]:
    """Returns images of the mels of true and generated crops of audio, side by side, and their audio."""
    audio = {"true": true, "generated": made}
    mels = [np.asarray(scale_mel(log_mels(crops))) for crops in audio.values()]
    pictures = {f"heldout_mel/{i}": side_by_side(*pair) for i, pair in enumerate(zip(*mels, strict=True))}
    sounds = {f"heldout_audio/{i}_{name}": crops[i] for i in range(len(true)) for name, crops in audio.items()}
    return pictures, sounds
