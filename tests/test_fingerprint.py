"""Identities of vocoders and models depend on their weights and settings, not on names or paths."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx import TensorProto, helper, numpy_helper

from spectrodiff.errors import InputError
from spectrodiff.fingerprint import fingerprint, fingerprint_of_files
from spectrodiff.vocoder import saved_model
from spectrodiff.vocoder.generator import Generator, GeneratorConfig
from spectrodiff.vocoder.griffin_lim import GriffinLim
from spectrodiff.vocoder.onnx import OnnxVocoder
from spectrodiff.vocoder.refiner import Refiner, RefinerConfig
from spectrodiff.vocoder.saved_model import SavedModelVocoder
from spectrodiff.vocoder.streaming import MelGAN

MELGAN = GeneratorConfig(channels=16, dilations=(1,))
REFINER = RefinerConfig(width=8, layers=1)


def make_melgan(seed=0, chunk=128, **changes):
    return MelGAN(Generator(dataclasses.replace(MELGAN, **changes), rngs=nnx.Rngs(seed)), chunk)


def make_griffin_lim(seed=0, iterations=16, **changes):
    return GriffinLim(Refiner(dataclasses.replace(REFINER, **changes), rngs=nnx.Rngs(seed)), iterations)


def test_different_vocoders_have_different_identities():
    vocoders = [GriffinLim(), GriffinLim(iterations=8), GriffinLim(momentum=0.5), GriffinLim(freedom=0.5)]
    vocoders += [
        make_griffin_lim(),
        make_griffin_lim(seed=1),
        make_griffin_lim(iterations=8),
        make_griffin_lim(agreement=3),
    ]
    vocoders += [
        make_melgan(),
        make_melgan(seed=1),
        make_melgan(dilations=(3,)),
    ]  # the last has the weights of the first
    identities = [vocoder.identity() for vocoder in vocoders]
    assert len(set(identities)) == len(vocoders)
    kinds = [identity.rpartition(" ")[0] for identity in identities]
    assert kinds == 4 * ["GriffinLim"] + 4 * ["GriffinLim with refiner"] + 3 * ["MelGAN"]


def test_equal_weights_have_equal_identities():
    assert GriffinLim().identity() == GriffinLim().identity()
    assert make_griffin_lim().identity() == make_griffin_lim().identity()
    assert make_melgan().identity() == make_melgan(chunk=16).identity()


def test_changing_one_weight_changes_the_fingerprint():
    generator = Generator(MELGAN, rngs=nnx.Rngs(0))
    before = fingerprint(generator)
    leaf = jax.tree.leaves(nnx.state(generator, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable))[-1]
    leaf[...] = leaf[...].at[(0,) * leaf[...].ndim].add(1e-3)
    assert fingerprint(generator) != before


def test_fingerprint_depends_on_parameter_boundaries():
    class Pair(nnx.Module):
        def __init__(self, a, b):
            self.a, self.b = nnx.Param(jnp.array(a)), nnx.Param(jnp.array(b))

    assert fingerprint(Pair([1.0], [2.0, 3.0])) != fingerprint(Pair([1.0, 2.0], [3.0]))
    assert fingerprint(Pair([1.0], [2.0])) == fingerprint(Pair([1.0], [2.0]))


def test_fingerprint_depends_on_values_dtypes_and_shapes():
    class One(nnx.Module):
        def __init__(self, value, dtype):
            self.value = nnx.Param(jnp.array(value, dtype))

    values = [(1.0, "float32"), (2.0, "float32"), (1.0, "bfloat16"), ([1.0], "float32"), (np.zeros((0, 3)), "float32")]
    assert len({fingerprint(One(*value)) for value in values}) == len(values)


def test_different_models_have_different_fingerprints(our_model, paper_model):
    assert fingerprint(our_model) == fingerprint(our_model)
    assert fingerprint(our_model) != fingerprint(paper_model)


def write_onnx(folder: pathlib.Path, seed: int, **options) -> pathlib.Path:
    """Writes a vocoder that maps each frame linearly to random audio; the file name is always the same."""
    waves = (0.002 * np.random.default_rng(seed).normal(size=(128, 320))).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["mel", "waves"], ["frames"]), helper.make_node("Flatten", ["frames"], ["out"])]
    given = helper.make_tensor_value_info("mel", TensorProto.FLOAT, [1, "frames", 128])
    made = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, "samples"])
    graph = helper.make_graph(nodes, "waves", [given], [made], [numpy_helper.from_array(waves, "waves")])
    folder.mkdir()
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, folder / "decoder.onnx", **options)
    return folder / "decoder.onnx"


@pytest.mark.parametrize("weights", ["inside", "w.bin", f"{'w' * 200}.bin"])
def test_onnx_identity_includes_external_weights(weights, tmp_path):
    options = {} if weights == "inside" else {"save_as_external_data": True, "location": weights}
    one, other = (write_onnx(tmp_path / f"{seed}", seed, **options) for seed in (0, 1))
    if options:
        assert one.read_bytes() == other.read_bytes()
    moved = shutil.copytree(one.parent, tmp_path / "elsewhere") / one.name
    identities = [OnnxVocoder(path).identity() for path in (one, moved, other)]
    assert identities[0].startswith("OnnxVocoder ")
    assert identities[0] == identities[1] != identities[2]


def test_saved_model_identity_depends_on_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "load_model", lambda *_: lambda mel: np.zeros(320 * mel.shape[1], np.float32))
    for name, weights in (("one", b"1"), ("same", b"1"), ("other", b"2")):
        (tmp_path / name / "variables").mkdir(parents=True)
        (tmp_path / name / "saved_model.pb").write_bytes(b"a program")
        (tmp_path / name / "variables" / "variables.data-00000-of-00001").write_bytes(weights)
    (tmp_path / "same" / "README.md").write_text("which TensorFlow does not read")
    one, same, other = (SavedModelVocoder(tmp_path / name).identity() for name in ("one", "same", "other"))
    assert one.startswith("SavedModelVocoder ")
    assert one == same != other


def test_fingerprint_of_files_depends_on_names_and_content(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    a, b = tmp_path / "a", tmp_path / "b"
    kept = fingerprint_of_files({"x": a, "y": b})
    assert kept == fingerprint_of_files({"y": b, "x": a})
    others = [fingerprint_of_files(files) for files in ({"x": b, "y": a}, {"x": a}, {"x": a, "z": b})]
    assert len({kept, *others}) == 4
    with pytest.raises(InputError, match=f"{tmp_path}/nope: "):
        fingerprint_of_files({"x": tmp_path / "nope"})
