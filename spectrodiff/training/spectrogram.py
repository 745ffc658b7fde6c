"""The task of learning spectrograms from notes: its model, its loss, its held-out figures."""

import dataclasses
import functools
import pathlib

import gin
import grain
import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from spectrodiff.audio.mel import HOP, LOG_CEILING, LOG_FLOOR
from spectrodiff.config import WINDOW_FRAMES, SpectrogramConfig, to_dict
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.pieces import open_piece
from spectrodiff.data.pipeline import batches
from spectrodiff.data.windows import cut_window
from spectrodiff.diffusion.objective import OBJECTIVES, diffusion_loss
from spectrodiff.diffusion.samplers import dpmpp
from spectrodiff.diffusion.schedule import logsnr_at
from spectrodiff.errors import InputError
from spectrodiff.models.sampling import window_sampler
from spectrodiff.models.spectrogram_model import SpectrogramModel
from spectrodiff.notes.tokenizer import NoteTokenizer
from spectrodiff.pretrained.formats import open_checkpoint
from spectrodiff.pretrained.hub import find_checkpoint
from spectrodiff.pretrained.native import SPECTROGRAM, build, save

_BATCH = 16  # held-out windows sampled at once
_CHANGEABLE = {"dropout", "tokens_per_note"}  # hyperparameters of a model that its weights do not depend on
NATS = (LOG_CEILING - LOG_FLOOR) / 2.0  # of log-mel in one unit of scaled mel


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SpectrogramTask:
    """Trains a `SpectrogramModel` on a mixture of prepared datasets."""

    mixture: Mixture = Mixture()
    config: SpectrogramConfig = SpectrogramConfig()
    condition_drop: float = 0.1
    # Noise times are uniform to this power: 1 is the paper's, below 1 leans towards noise.
    time_power: float = 1.0
    heldout_windows: int = 64
    heldout_steps: int = 8
    heldout_split: str = "validation"

    @functools.cached_property
    def tokenizer(self) -> NoteTokenizer:
        return NoteTokenizer(self.config.tokenizer)

    def build(self, rngs: nnx.Rngs) -> SpectrogramModel:
        return SpectrogramModel(self.config, rngs=rngs)

    def load(self, checkpoint: str) -> SpectrogramModel:
        """The model of this task's config with the weights of a checkpoint.

        Raises:
          InputError: there is no such checkpoint, or its weights mean something else; the message names what.
        """
        found = open_checkpoint(find_checkpoint(checkpoint))
        theirs, ours = (
            {**to_dict(config.model), **to_dict(config.diffusion), "velocity_bins": config.tokenizer.velocity_bins}
            for config in (found.config, self.config)
        )
        for name in sorted(theirs.keys() - _CHANGEABLE):
            if theirs[name] != ours[name]:
                raise InputError(
                    f"cannot train from {checkpoint}: its {name} is {theirs[name]!r}, the config's {ours[name]!r}"
                )
        return build(SPECTROGRAM, self.config, found.arrays, str(found.folder))

    def batches(self, seed: int) -> grain.DatasetIterator:
        return batches(self.mixture, self.tokenizer, self._tokens_per_note, seed=seed)

    @property
    def _tokens_per_note(self) -> int:
        return self.config.model.tokens_per_note if self.config.model.compact_notes else 1

    def loss(self, model: SpectrogramModel, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        time_key, drop_key, noise_key, dropout_key = jax.random.split(key, 4)
        cfg, size = self.config.diffusion, batch["tokens"].shape[0]
        rngs = nnx.Rngs(dropout=dropout_key)
        time = jax.random.uniform(time_key, (size,)) ** self.time_power
        conditioning = model.encode(batch["tokens"], batch["context"], batch["context_mask"], WINDOW_FRAMES, rngs)
        conditioning = conditioning.keep(jax.random.bernoulli(drop_key, 1.0 - self.condition_drop, (size,)))
        memory = model.remember(conditioning)
        losses = diffusion_loss(
            lambda z, logsnr: model.decoder(z, logsnr, memory, rngs),
            OBJECTIVES[cfg.prediction],
            (batch["target"] - cfg.mean) / cfg.std,
            batch["target_mask"],
            logsnr_at(time),
            noise_key,
        )
        return losses.mean(), {"overfull": batch["overfull"].mean()} if "overfull" in batch else {}

    @functools.cached_property
    def heldout(self) -> dict[str, np.ndarray]:
        """Windows of the held-out split, spread evenly over its music, the same every time."""
        places = [
            (part, index, start)
            for part in self.mixture.heldout(self.heldout_split)
            for index, samples in enumerate(part.samples)
            for start in range(0, -(-samples // HOP), WINDOW_FRAMES)
        ]
        chosen = np.linspace(0, len(places) - 1, min(len(places), self.heldout_windows)).astype(int)
        tokens, per_note = self.config.tokenizer.max_tokens, self._tokens_per_note
        count_notes = self.tokenizer.vocabulary.count_notes
        windows = []
        for part, index, start in tqdm([places[i] for i in chosen], "held-out windows", delay=2.0):
            piece = open_piece(part[index])
            timeline = self.tokenizer.timeline(piece.notes)
            windows.append(cut_window(piece, timeline, start, self.tokenizer, tokens, tokens // per_note))
        windows = [window for window in windows if window is not None]
        if not windows:
            raise InputError(f"every held-out window of {', '.join(self.mixture.names)} has over {tokens} tokens")
        needed = max(max(np.count_nonzero(w["tokens"]), per_note * count_notes(w["tokens"])) for w in windows)
        for window in windows:  # padded to what is needed, not to the limit
            window["tokens"] = window["tokens"][: -(-needed // 512) * 512]
        return {name: np.stack([window[name] for window in windows]) for name in windows[0]}

    def sample_heldout(self, graph, params, buffers, *, steps: int, guidance: float = 1.0) -> np.ndarray:
        """Scaled mels sampled for the held-out windows, with the true previous window as context."""
        data, sampled = self.heldout, []
        sample_window = window_sampler(graph, self.config.diffusion)
        for i in range(0, len(data["tokens"]), _BATCH):
            given = (data[name][i : i + _BATCH] for name in ("tokens", "context", "context_mask"))
            sampled.append(
                sample_window((params, buffers), *given, jax.random.key(i), step=dpmpp, steps=steps, guidance=guidance)
            )
        return np.concatenate(sampled)

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """Log-mel L1 in nats between sampled and true held-out windows."""
        data, sampled = self.heldout, self.sample_heldout(graph, params, buffers, steps=self.heldout_steps)
        return {"heldout_mel_l1": mel_l1(sampled, data["target"], data["target_mask"])}

    def baselines(self) -> dict[str, float]:
        """What guesses score on the held-out windows, in nats: their mean, another window, the mean of the context."""
        data = self.heldout
        target, mask = data["target"], data["target_mask"]
        context, context_mask = data["context"], data["context_mask"][..., None]
        frames = np.maximum(context_mask.sum(1, keepdims=True), 1)
        context_mean = (context * context_mask).sum(1, keepdims=True) / frames
        mean = target[mask].mean(0)
        context_mean = np.where(context_mask.any(1, keepdims=True), context_mean, mean)
        return {
            "mean_mel": mel_l1(np.broadcast_to(mean, target.shape), target, mask),
            "wrong_window": mel_l1(np.roll(target, 1, axis=0), target, mask),
            "context_mean": mel_l1(np.broadcast_to(context_mean, target.shape), target, mask),
        }

    def save(self, folder: pathlib.Path, model: SpectrogramModel, card: dict) -> None:
        save(folder, SPECTROGRAM, model, self.config, card)


def mel_l1(scaled: np.ndarray, target: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute difference of log-mels in nats over real frames, from scaled ones."""
    return float(NATS * np.abs(scaled - target).mean(-1)[mask].mean())
