"""Held-out windows: which they are, what a spectrogram model scores on them, and how it looks and sounds there."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, LOG_CEILING, LOG_FLOOR, log_mel, scale_mel, unscale_mel
from spectrodiff.config import WINDOW_FRAMES
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.windows import SILENCE, cut_window
from spectrodiff.errors import InputError
from spectrodiff.models.decoder import DecoderConfig
from spectrodiff.models.sampling import window_sampler
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.vocoder.griffin_lim import GriffinLim

NATS = (LOG_CEILING - LOG_FLOOR) / 2.0  # of log-mel in one unit of scaled mel
BANDS = 4  # of noise times, in which the loss is measured apart
_BATCH = 16  # windows at once
_GOLDEN = 0.5 * (5**0.5 - 1)  # multiples of it, but for their whole parts, lie evenly, however many one takes
_GAP = 4  # pixels of white between mels

Windows = dict[str, np.ndarray]
Mel = Float[np.ndarray, "_t m"]
Pictures = dict[str, UInt8[np.ndarray, "_h _w 3"]]
Sounds = dict[str, Float32[np.ndarray, " _s"]]


def cut_windows(mixture: Mixture, split: str, count: int, tokenizer: NoteTokenizer, tokens_per_note: int) -> Windows:
    """About `count` windows of a split, as many of each dataset, spread evenly over its music; the same every time.

    Stacked `cut_window`s, with no more tokens than are needed, and `dataset`: each one's place in `mixture.names`.

    Raises:
      InputError: a dataset is not there, none has the split, or all of the windows have too many tokens.
    """
    places = [
        [
            (part, index, start)
            for index, samples in enumerate(part.samples)
            for start in range(0, -(-samples // HOP), WINDOW_FRAMES)
        ]
        for part in mixture.heldout(split)
    ]
    shares = equal_shares([len(some) for some in places], count)
    chosen = [
        some[i]
        for some, share in zip(places, shares, strict=True)
        for i in np.linspace(0, len(some) - 1, share).astype(int)
    ]
    limit = tokenizer.config.max_tokens
    count_notes = tokenizer.vocabulary.count_notes
    windows = []
    for part, index, start in tqdm(chosen, "held-out windows", delay=2.0):
        piece = open_piece(part[index])
        timeline = tokenizer.timeline(piece.notes)
        window = cut_window(piece, timeline, start, tokenizer, limit, limit // tokens_per_note)
        if window is not None:
            windows.append({**window, "dataset": np.int32(mixture.names.index(part.dataset))})
    if not windows:
        raise InputError(f"every held-out window of {', '.join(mixture.names)} has over {limit} tokens")
    needed = max(max(np.count_nonzero(w["tokens"]), tokens_per_note * count_notes(w["tokens"])) for w in windows)
    for window in windows:  # padded to what is needed, not to the limit
        window["tokens"] = window["tokens"][: -(-needed // 512) * 512]
    return {name: np.stack([window[name] for window in windows]) for name in windows[0]}


def equal_shares(sizes: Sequence[int], count: int) -> list[int]:
    """How much to take of each, `count` in all: equally much where there is as much, and of each at least one."""
    shares, left = [0] * len(sizes), count
    for taken, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], max(1, left // (len(sizes) - taken)))
        left -= shares[i]
    return shares


def pick(windows: Windows, count: int) -> Windows:
    """`count` of the windows, spread over them, or all where there are fewer."""
    total = len(windows["tokens"])
    rows = np.linspace(0, total - 1, min(count, total)).astype(int)
    return {name: value[rows] for name, value in windows.items()}


def over_batches(function: Callable, windows: Windows) -> np.ndarray:
    """`function` of some windows and a key, over all of them, in batches of one shape; rows and keys never change."""
    total = len(windows["tokens"])
    results = []
    for first in range(0, total, _BATCH):
        rows = np.minimum(np.arange(first, first + _BATCH), total - 1)
        results.append(function({name: value[rows] for name, value in windows.items()}, jax.random.key(first)))
    return np.concatenate(results)[:total]


def sample_windows(weights: tuple, decoder: DecoderConfig, windows: Windows) -> Float[np.ndarray, "w t m"]:
    """Scaled mels sampled for the windows as `decoder` says, with the true window before each as its context.

    `weights` are a `SpectrogramModel`'s graph and the states that were split off it.
    """
    graph, *states = weights
    sampler, options = window_sampler(graph), decoder.options()

    def sample(batch: Windows, key: jax.Array):
        given = (batch[name] for name in ("tokens", "context", "context_mask"))
        return sampler(states, *given, jax.random.split(key, len(batch["tokens"])), options)

    return over_batches(sample, windows)


def stratified_times(count: int) -> Float32[np.ndarray, "{count} n"]:
    """For each of `count` windows a time in each of BANDS equal bands of [0, 1).

    They lie at the same place of each band, and those of successive windows evenly.
    """
    place = np.arange(count) * _GOLDEN % 1.0
    return ((np.arange(BANDS) + place[:, None]) / BANDS).astype(np.float32)


def _groups(windows: Windows, names: Sequence[str]) -> dict[str, Bool[np.ndarray, " w"]]:
    """Which windows figures are of, by the ending of their names: all, and those of each dataset of several."""
    groups = {"": np.ones(len(windows["tokens"]), bool)}
    if len(names) > 1:
        groups |= {f"/{name}": windows["dataset"] == place for place, name in enumerate(names)}
    return {ending: chosen for ending, chosen in groups.items() if chosen.any()}


def mel_figures(windows: Windows, names: Sequence[str], sampled: Float[np.ndarray, "w t m"]) -> dict[str, float]:
    """`heldout_mel_l1` and `heldout_roughness`, over all windows, and over those of each of `names` if several."""
    target, mask, figures = windows["target"], windows["target_mask"], {}
    for ending, of in _groups(windows, names).items():
        figures[f"heldout_mel_l1{ending}"] = mel_l1(sampled[of], target[of], mask[of])
        true = roughness(target[of], mask[of])
        figures[f"heldout_roughness{ending}"] = roughness(sampled[of], mask[of]) / max(true, 1e-9)
    return figures


def loss_figures(windows: Windows, names: Sequence[str], losses: Float[np.ndarray, " w"]) -> dict[str, float]:
    """`heldout_loss`, the mean over all windows, and over those of each of `names` if these are several."""
    return {f"heldout_loss{ending}": float(losses[of].mean()) for ending, of in _groups(windows, names).items()}


def roughness(scaled: np.ndarray, mask: Bool[np.ndarray, "w t"]) -> float:
    """Mean absolute second difference over real frames of log-mels, in nats, from scaled ones."""
    difference = np.abs(np.diff(scaled, 2, axis=1)).mean(-1)
    return float(NATS * difference[mask[:, 2:]].mean()) if mask[:, 2:].any() else 0.0


def mel_l1(scaled: np.ndarray, target: np.ndarray, mask: Bool[np.ndarray, "*w t"]) -> float:
    """Mean absolute difference of log-mels in nats over real frames, from scaled ones."""
    return float(NATS * np.abs(scaled - target).mean(-1)[mask].mean())


def guesses(windows: Windows) -> dict[str, float]:
    """What guesses score on the windows, in nats: their mean, another window, the mean of the context."""
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
    """Scaled mels as a picture, low frequencies at the bottom, in the same colours; a pixel is a frame of a mel bin."""
    from matplotlib import colormaps  # without pyplot: no display is looked for

    colours = [colormaps["magma"]((mel.T[::-1] + 1.0) / 2.0, bytes=True)[..., :3] for mel in mels]
    gap = np.full((mels[0].shape[1], _GAP, 3), 255, np.uint8)
    return np.concatenate([part for colour in colours for part in (gap, colour)][1:], axis=1)


def show_windows(windows: Windows, sampled: Float[np.ndarray, "w t m"]) -> tuple[Pictures, Sounds]:
    """Each window's true mel, to the left, beside the sampled one, and both through Griffin-Lim."""
    pictures, sounds = {}, {}
    vocoder = GriffinLim()
    for i, mask in enumerate(windows["target_mask"]):
        mels = {"true": windows["target"][i][mask], "sampled": sampled[i][mask]}
        # Of a model that went astray, which samples what is no number: silence, rather than an end to the run.
        mels = {name: np.nan_to_num(mel, nan=SILENCE) for name, mel in mels.items()}
        pictures[f"heldout_mel/{i}"] = side_by_side(*mels.values())
        sounds |= {f"heldout_audio/{i}_{name}": _audible(mel, vocoder) for name, mel in mels.items()}
    return pictures, sounds


def _audible(scaled: Mel, vocoder: GriffinLim) -> Float32[np.ndarray, " _s"]:
    """Audio of a scaled mel, and silence of one that the vocoder takes for none, for the same reason."""
    try:
        return vocoder(unscale_mel(scaled))
    except InputError:
        return np.zeros(HOP * len(scaled), np.float32)


def show_audio(true: Float[np.ndarray, "n s"], made: Float[np.ndarray, "n s"]) -> tuple[Pictures, Sounds]:
    """Crops as recorded and as made from their mels: mels side by side, and audio."""
    audio = {"true": true, "generated": made}
    mels = {name: np.asarray(scale_mel(log_mel(both))) for name, both in audio.items()}
    pictures = {f"heldout_mel/{i}": side_by_side(*(both[i] for both in mels.values())) for i in range(len(true))}
    sounds = {f"heldout_audio/{i}_{name}": both[i] for i in range(len(true)) for name, both in audio.items()}
    return pictures, sounds
