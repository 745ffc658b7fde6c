"""Crops with Griffin-Lim excitation, training of generators on them, and the export of these generators."""

import dataclasses
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from inputs import jitted

from spectrodiff.audio.mel import log_mel_on_host
from spectrodiff.data.augmentation import Augmentation
from spectrodiff.data.dataset import open_dataset
from spectrodiff.data.mixture import Mixture
from spectrodiff.data.recordings import decode
from spectrodiff.data.resident_audio import ResidentAudioLoader
from spectrodiff.errors import InputError
from spectrodiff.pretrained.kinds import MELGAN, REFINER
from spectrodiff.pretrained.native import read, save, write
from spectrodiff.pretrained.vocoders import find_griffin_lim, find_vocoder
from spectrodiff.training import state as states
from spectrodiff.training.evaluators import CropBaseline, CropError
from spectrodiff.training.excitation import ExcitedCrops
from spectrodiff.training.steps import Others
from spectrodiff.training.vocoder import VocoderTask, gradient_scales
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.losses import spectral_losses
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.streaming import MelGAN

pack = runpy.run_path(str(pathlib.Path(__file__).parent.parent / "recipes" / "pack_weights.py"))["pack"]
SMALL = GeneratorConfig(16, (4,), (1,), "griffin_lim")
FAST = GriffinLim(iterations=1, solver_iterations=1)
ALONE = Others(lambda: None, {})


class CountingGriffinLim(GriffinLim):
    """Counts how often Griffin-Lim is run."""

    calls = 0

    def __call__(self, mel):
        CountingGriffinLim.calls += 1
        return super().__call__(mel)


@pytest.fixture
def records(corpus):
    return list(open_dataset(corpus, "rendered")["train"])


def test_crop_excitation_is_aligned_with_its_audio(records, tmp_path):
    """It is stored in float16, and scaled by the gain of the augmentation."""
    crops = ExcitedCrops(20, Augmentation(gain_db=(6.0, 6.0)), FAST, tmp_path)
    piece, _ = crops.read(records[0])
    example = crops.draw(iter([piece]), np.random.default_rng(0))
    whole = decode(records[0]).audio
    place = slice(int(example["start"]) * 320, int(example["start"]) * 320 + len(example["audio"]))
    gain = 10 ** (6 / 20)
    np.testing.assert_allclose(example["audio"], gain * whole[place], atol=1e-6)
    expected = gain * FAST(log_mel_on_host(whole))[place]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(example["excitation"], expected, rtol=1e-3, atol=1e-6)


def test_excitation_is_cached_and_damaged_files_are_recomputed(records, tmp_path):
    crops = ExcitedCrops(20, griffin_lim=CountingGriffinLim(iterations=1, solver_iterations=1), folder=tmp_path)
    counts = []
    for damage in (None, None, b"", b"\x93NUMPY damaged"):
        for path in tmp_path.rglob("*.npy"):
            if damage is not None:
                path.write_bytes(damage)
        crops.read(records[0])
        counts.append(CountingGriffinLim.calls)
    assert np.diff([0, *counts]).tolist() == [1, 0, 1, 1]
    crops.read(records[1])
    dataclasses.replace(crops, griffin_lim=dataclasses.replace(crops.griffin_lim, momentum=0.5)).read(records[0])
    assert CountingGriffinLim.calls == counts[-1] + 2  # another recording, and another vocoder
    assert len(list(tmp_path.rglob("*.npy"))) == 3


def test_unwritable_excitation_dir_raises_input_error(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="excitation_dir"):
        ExcitedCrops(20, griffin_lim=FAST, folder=tmp_path / "file").read(records[0])


@pytest.fixture(scope="module")
def task(corpus, tmp_path_factory):
    """Without a refiner, its Griffin-Lim has a single iteration."""
    made = str(tmp_path_factory.mktemp("excitation"))
    options = {"batch_size": 2, "crop_frames": 8, "heldout_crops": 2, "excitation_dir": made}

    def find(refiner):
        return find_griffin_lim(refiner) if refiner else FAST

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectrodiff.training.vocoder.find_griffin_lim", find)
        yield VocoderTask(Mixture(str(corpus)), config=SMALL, **options)


def test_initial_losses_equal_those_of_griffin_lim(task):
    stream = task.batches(seed=0)
    batch = jax.tree.map(jnp.asarray, next(stream))
    stream.close()
    inner = slice(task.margin * 320, (task.margin + 8) * 320)
    audio, excitation = (jnp.asarray(batch[name][:, inner]) for name in ("audio", "excitation"))
    model = task.build(nnx.Rngs(0))
    value, terms = jitted(lambda *given: task.loss(*given, jax.random.key(0), ALONE))(model, batch)
    expected = jax.jit(spectral_losses)(excitation, audio)
    assert float(value) == pytest.approx(float(sum(expected.values())), rel=1e-4)
    for name in expected:
        assert float(terms[name]) == pytest.approx(float(expected[name]), rel=1e-4)
    weights = states.split(model)
    heldout, baseline = (evaluator(task, weights).figures for evaluator in (CropError(), CropBaseline()))
    for name in expected:
        assert heldout[f"heldout_{name}"] == pytest.approx(baseline[f"griffin_lim_{name}"], rel=1e-4)
        assert baseline[f"griffin_lim_{name}"] < baseline[f"silence_{name}"]


def test_resident_crops_match_recordings_and_their_excitation(task, corpus):
    """Both columns are rounded to 16 bits, and have the same gain."""
    task = dataclasses.replace(
        task, batch_size=8, augmentation=Augmentation(gain_db=(-6.0, -6.0)), loader=ResidentAudioLoader()
    )
    batch = jax.device_get(next(task.batches(seed=0)))
    records = list(open_dataset(corpus, "rendered")["train"])
    crops = ExcitedCrops(task.frames, griffin_lim=task.griffin_lim, folder=pathlib.Path(task.excitation_dir))
    gain = 10 ** (-6 / 20)
    for index, ((_, record), start) in enumerate(zip(batch["record"], batch["start"].tolist(), strict=True)):
        piece, _ = crops.read(records[record])
        expected = piece.read(320 * start, len(batch["audio"][index]))
        for name, column in zip(("audio", "excitation"), expected.T, strict=True):
            np.testing.assert_allclose(batch[name][index], gain * column, atol=2**-15)
    assert min(np.abs(batch[name]).max() for name in ("audio", "excitation")) > 1e-3


def test_gradient_scales_are_norms_of_weighted_gradients():
    made, true = 0.1 * jax.random.normal(jax.random.key(0), (2, 3, 100))

    def losses(made, true):
        return {"square": jnp.square(made - true).sum(), "sum": made.sum()}

    scales = gradient_scales(losses, made, true, {"square": 2.0, "sum": 0.5})
    assert float(scales["gradient/square"]) == pytest.approx(4 * float(jnp.linalg.norm(made[0] - true[0])), rel=1e-5)
    assert float(scales["gradient/sum"]) == pytest.approx(0.5 * 10.0)


def test_sub_mix_augmentation_raises_input_error(task):
    with pytest.raises(InputError, match="sub_mix"):
        dataclasses.replace(task, augmentation=Augmentation(sub_mix=0.5))


def test_export_includes_a_refiner_given_by_folder(task, tmp_path):
    """The folder of the refiner may be moved later. Without a refiner, none is exported."""
    mel = np.random.default_rng(0).uniform(-6.0, 0.0, (9, 128)).astype(np.float32)
    small = RefinerConfig(width=8, layers=1)
    refiner = Refiner(small, rngs=nnx.Rngs(0))
    save(tmp_path / "refiner", REFINER, refiner, small, {})
    for named, griffin_lim in ((str(tmp_path / "refiner"), GriffinLim(refiner)), ("", GriffinLim())):
        config = dataclasses.replace(SMALL, refiner=named)
        here = dataclasses.replace(task, config=config)
        generator = Generator(config, rngs=nnx.Rngs(0))
        folder = tmp_path / f"export{bool(named)}"
        here.save(folder, generator, {})
        (tmp_path / "refiner").rename(tmp_path / "moved") if named else None
        assert REFINER.exists_in(folder) == bool(named)
        vocoder = find_vocoder(folder)
        assert vocoder.identity() == MelGAN(generator, griffin_lim=griffin_lim).identity()
        np.testing.assert_allclose(vocoder(mel), griffin_lim(mel), atol=1e-6)  # an untrained generator corrects nothing


def test_packaged_refiner_is_not_exported(task, tmp_path):
    config = dataclasses.replace(SMALL, refiner="demo")
    dataclasses.replace(task, config=config).save(tmp_path, Generator(config, rngs=nnx.Rngs(0)), {})
    assert not REFINER.exists_in(tmp_path)
    assert find_vocoder(tmp_path).griffin_lim.identity() == find_vocoder("refiner").identity()


def test_packaged_generator_is_found_by_name(task, tmp_path, monkeypatch):
    """Its folder has no spectrogram model. Training can start from it by name, too."""
    save(tmp_path / "melgan", MELGAN, Generator(SMALL, rngs=nnx.Rngs(0)), SMALL, {}, "float16")
    monkeypatch.setattr("spectrodiff.pretrained.hub._WEIGHTS", tmp_path)
    assert isinstance(find_vocoder("melgan"), MelGAN)
    assert task.load("melgan").cfg == SMALL
    with pytest.raises(InputError, match=r"griffin_lim, melgan, an \.onnx file"):
        find_vocoder("nope")


def test_packed_vocoder_is_half_as_large_with_nearly_equal_audio(tmp_path):
    generator = Generator(SMALL, rngs=nnx.Rngs(0))
    generator.leave.direction[...] += 0.1
    save(tmp_path / "export", MELGAN, generator, SMALL, {"steps": 3})
    pack(tmp_path / "export", tmp_path / "packed")
    sizes = [(tmp_path / name / "vocoder.safetensors").stat().st_size for name in ("export", "packed")]
    assert sizes[1] < 0.6 * sizes[0]
    assert read(tmp_path / "packed", MELGAN)[2] == {"steps": 3}
    mel = np.random.default_rng(0).uniform(-6.0, 0.0, (9, 128)).astype(np.float32)
    ours, theirs = (find_vocoder(tmp_path / name)(mel) for name in ("packed", "export"))
    assert 0 < np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()
    with pytest.raises(InputError, match=f"^{tmp_path} "):
        pack(tmp_path, tmp_path / "other")
    large = dataclasses.replace(SMALL, channels=1024)
    write(tmp_path / "large", MELGAN, {}, large, {})
    with pytest.raises(InputError, match=r"\bMelGAN\b.* MB\b"):
        pack(tmp_path / "large", tmp_path / "other")
    assert not (tmp_path / "other").exists()
