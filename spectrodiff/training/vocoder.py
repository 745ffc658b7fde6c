"""The task of learning audio from mels: crops of recordings, spectral losses, held-out figures."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import gin
import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from spectrodiff.audio.files import read_audio
from spectrodiff.audio.mel import EXTRA_FRAMES, HOP, SAMPLE_RATE, log_mel
from spectrodiff.config import GeneratorConfig
from spectrodiff.data.windows import read_split
from spectrodiff.errors import InputError
from spectrodiff.pretrained.native import VOCODER, save
from spectrodiff.vocoder.generator import Generator
from spectrodiff.vocoder.losses import spectral_losses, total


class _RandomCrop(grain.transforms.RandomMap):
    """A crop that begins on any frame, with the extra samples that its last mel frames see."""

    def __init__(self, recordings: list[np.ndarray], samples: int):
        self.recordings, self.samples = recordings, samples
        lengths = np.array([len(recording) for recording in recordings])
        self.share = lengths / lengths.sum()

    def random_map(self, element, rng):
        recording = self.recordings[rng.choice(len(self.recordings), p=self.share)]
        start = HOP * int(rng.integers(max(1, (len(recording) - self.samples) // HOP)))
        crop = recording[start : start + self.samples].astype(np.float32) / 32768.0
        return {"audio": np.pad(crop, (0, self.samples - len(crop)))}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class VocoderTask:
    """Trains a MelGAN `Generator` on the recordings of a prepared corpus in `data_dir`, by spectral losses alone."""

    data_dir: str = "data/rendered"
    config: GeneratorConfig = GeneratorConfig()
    loss_weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"log_magnitude": 1.0, "convergence": 1.0, "mel": 1.0}
    )
    batch_size: int = 16
    crop_frames: int = 50
    heldout_crops: int = 32
    max_pieces: int | None = None

    @property
    def _samples(self) -> int:
        return (self.crop_frames + EXTRA_FRAMES) * HOP

    def build(self, rngs: nnx.Rngs) -> Generator:
        return Generator(self.config, rngs=rngs)

    def batches(self, seed: int) -> grain.DatasetIterator:
        crops = _RandomCrop(self._recordings("train"), self._samples)
        dataset = grain.MapDataset.range(2**40).seed(seed).random_map(crops).batch(self.batch_size)
        return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))

    def _recordings(self, split: str) -> list[np.ndarray]:
        names = read_split(self.data_dir, split)[: self.max_pieces]
        paths = [pathlib.Path(self.data_dir) / "audio" / f"{name}.flac" for name in names]
        progress = tqdm(paths, desc="reading recordings", unit="piece", mininterval=1.0)
        return [np.round(read_audio(path) * 32768.0).clip(-32768, 32767).astype(np.int16) for path in progress]

    def loss(self, model: Generator, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        samples = self.crop_frames * HOP
        mel = jax.lax.stop_gradient(log_mel(batch["audio"]))[:, : self.crop_frames]
        terms = spectral_losses(model(mel), batch["audio"][:, :samples])
        return total(terms, self.loss_weights), terms

    @functools.cached_property
    def heldout(self) -> np.ndarray:
        """Two-second crops of the validation split, the same every time."""
        samples = 2 * SAMPLE_RATE
        crops = [
            recording[start : start + samples]
            for recording in self._recordings("validation")
            for start in range(0, len(recording) - samples + 1, samples)
        ]
        if not crops:
            raise InputError(f"no validation recording in {self.data_dir} lasts two seconds; add a longer one")
        crops = [crops[i] for i in np.linspace(0, len(crops) - 1, min(len(crops), self.heldout_crops)).astype(int)]
        return np.stack(crops).astype(np.float32) / 32768.0

    @functools.cached_property
    def _losses(self):
        @functools.partial(jax.jit, static_argnums=0)
        def losses(graph, params, buffers, audio):
            return spectral_losses(nnx.merge(graph, params, buffers)(log_mel(audio)), audio)

        return losses

    def evaluate(self, graph, params, buffers) -> dict[str, float]:
        """The spectral losses on held-out crops."""
        terms = self._losses(graph, params, buffers, jnp.asarray(self.heldout))
        return {f"heldout_{name}": float(value) for name, value in terms.items()}

    def baselines(self) -> dict[str, float]:
        """What silence scores on the held-out crops."""
        terms = spectral_losses(jnp.zeros_like(self.heldout), jnp.asarray(self.heldout))
        return {f"silence_{name}": float(value) for name, value in terms.items()}

    def save(self, folder: pathlib.Path, model: Generator, card: dict) -> None:
        save(folder, VOCODER, model, self.config, card)
