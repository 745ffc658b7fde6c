import zipfile

import ml_dtypes
import numpy as np
import pytest
from torch_writer import call, named, state, tensor, value, write_archive, write_torch

from spectrodiff.errors import InputError
from spectrodiff.pretrained.torch_file import TorchArrays

ARRAYS = {
    "decoder.spec_out.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "decoder_norm.weight": np.linspace(-1, 1, 5, dtype=np.float32),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
}
ONE = {"0": np.ones(1, np.float32)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.bin"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_arrays_are_read_bit_for_bit(path, dtype):
    written = {name: array.astype(dtype) for name, array in ARRAYS.items()}
    write_torch(path, written)
    arrays = TorchArrays(path)
    assert list(arrays) == list(written)
    assert len(arrays) == len(written)
    for name, array in written.items():
        assert arrays[name].dtype == dtype
        assert arrays[name].shape == array.shape
        assert arrays[name].tobytes() == array.tobytes()
        assert arrays.spec(name) == (array.shape, array.dtype.name)


def test_views_of_a_shared_storage_are_read(path):
    stored = np.arange(24, dtype=np.float32)
    views = {
        "transposed": tensor("0", "FloatStorage", offset=4, shape=(4, 3), strides=(1, 4)),
        "row": tensor("0", "FloatStorage", offset=8, shape=(4,), strides=(1,)),
        "repeated": tensor("0", "FloatStorage", offset=2, shape=(5, 2), strides=(0, 1)),
    }
    write_archive(path, state(views), {"0": stored})
    arrays = TorchArrays(path)
    np.testing.assert_array_equal(arrays["transposed"], stored[4:16].reshape(3, 4).T)
    np.testing.assert_array_equal(arrays["row"], stored[8:12])
    np.testing.assert_array_equal(arrays["repeated"], [[2, 3]] * 5)


# Pickles that would create the file `marker`, or that refer to disallowed names.
MALICIOUS = {
    "a command": lambda marker: call(named("posix", "system"), value(f"touch {marker}")),
    "a command by the INST opcode": lambda marker: b"(" + value(f"touch {marker}") + b"iposix\nsystem\n",
    "a command on the stack": lambda marker: call(value("posix") + value("system") + b"\x93", value(f"touch {marker}")),
    "code": lambda marker: call(named("builtins", "eval"), value(f"open({str(marker)!r}, 'w')")),
    "another function of torch": lambda marker: call(named("torch._utils", "_rebuild_parameter")),
    "another class of torch": lambda marker: call(named("torch", "Tensor")),
    "an attribute of an allowed function": lambda marker: named("torch._utils", "_rebuild_tensor_v2.__globals__"),
    "a method of an allowed class": lambda marker: named("collections", "OrderedDict.fromkeys"),
    "an untyped storage": lambda marker: tensor("0", "UntypedStorage", 0, (1,), (1,)),
    "a persistent object": lambda marker: b"(" + value("module") + value("x") + b"tQ",
}  # fmt: skip


@pytest.mark.parametrize("kind", MALICIOUS)
def test_malicious_pickle_raises_input_error_and_is_not_run(tmp_path, path, kind):
    good, marker = tensor("0", "FloatStorage", 0, (1,), (1,)), tmp_path / "marker"
    write_archive(path, state({"good": good, "evil": MALICIOUS[kind](marker)}), ONE)
    with pytest.raises(InputError, match=r"weights\.bin: .*\btensors\b"):
        TorchArrays(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "content_pickle",
    [
        tensor("0", "FloatStorage", 0, (1,), (1,)),
        value([1, 2]),
        state({"a": value(1)}),
        state({1: tensor("0", "FloatStorage", 0, (1,), (1,))}),
        state({"nested": state({"a": tensor("0", "FloatStorage", 0, (1,), (1,))})}),
    ],
    ids=["tensor", "list", "number", "unnamed", "nested"],
)
def test_pickle_of_other_objects_raises_input_error(path, content_pickle):
    write_archive(path, content_pickle, ONE)
    with pytest.raises(InputError, match=r"weights\.bin: .*\btensors\b"):
        TorchArrays(path)


def test_attributes_set_by_a_pickle_do_not_affect_later_files(path):
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    poisoned = rebuild + b"N}" + value("__defaults__") + value((1, 2, 3, 4)) + b"s\x86b0"
    write_archive(path, poisoned + state({"a": tensor("0", "FloatStorage", 0, (1,), (1,))}), ONE)
    np.testing.assert_array_equal(TorchArrays(path)["a"], [1.0])
    short = call(
        rebuild, b"(" + value("storage") + named("torch", "FloatStorage") + value("0") + value("cpu") + value(1) + b"tQ"
    )
    write_archive(path, state({"a": short}), ONE)
    with pytest.raises(InputError, match=r"weights\.bin: .*torch\.save"):
        TorchArrays(path)


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (2,), (1,)), (1, (1,), (1,)), (0, (2, 2), (0, 1)), (-1, (1,), (1,)), (0, (-1,), (1,)), (0, (1,), (-1,)),
     (0, (1, 1), (1,)), (0, "11", (1, 1)), (0.0, (1,), (1,)), (None, None, None)],
)  # fmt: skip
def test_tensor_outside_its_storage_raises_input_error(path, offset, shape, strides):
    write_archive(path, state({"a.weight": tensor("0", "FloatStorage", offset, shape, strides)}), ONE)
    with pytest.raises(InputError, match=r"parameter a\.weight .*weights\.bin: "):
        TorchArrays(path)["a.weight"]


def test_missing_or_damaged_storage_raises_input_error(path):
    write_archive(path, state({"a": tensor("7", "FloatStorage", 0, (1,), (1,))}), ONE)
    with pytest.raises(InputError, match=r"parameter a .*weights\.bin: "):
        TorchArrays(path)["a"]
    write_torch(path, ARRAYS)
    content = path.read_bytes()
    path.write_bytes(content.replace(ARRAYS["decoder_norm.weight"].tobytes(), bytes(20)))
    with pytest.raises(InputError, match=r"parameter decoder_norm.weight .*CRC"):
        TorchArrays(path)["decoder_norm.weight"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file_raises_input_error(path, share):
    write_torch(path, ARRAYS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"weights\.bin: .*torch\.save"):
        TorchArrays(path)


@pytest.mark.parametrize("pickled", [b"", b"\x80\x02", b"\x80\x02}", b"not a pickle", b"\x80\x02R."])
def test_damaged_pickle_raises_input_error(path, pickled):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    with pytest.raises(InputError, match=r"weights\.bin: .*torch\.save"):
        TorchArrays(path)


def test_other_archive_or_missing_file_raises_input_error(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("song.mid", b"")
    for _ in range(2):
        with pytest.raises(InputError, match=r"weights\.bin: .*torch\.save"):
            TorchArrays(path)
        path.unlink(missing_ok=True)
