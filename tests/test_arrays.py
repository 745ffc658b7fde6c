import resource

import numpy as np
import pytest

from spectrodiff.errors import InputError
from spectrodiff.pretrained.arrays import (
    LazyArrays,
    Renamed,
    SafetensorsArrays,
    Spec,
    Stacks,
    check_names,
    check_spec,
    checked,
    save_arrays,
)

ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(3, dtype=np.float16)}


class CountingArrays(LazyArrays):
    """Arrays that count how often one of them is read."""

    def __init__(self, arrays):
        super().__init__(arrays)
        self.arrays, self.reads = arrays, 0

    def __getitem__(self, name):
        self.reads += 1
        return self.arrays[name]

    def spec(self, name):
        return Spec(self.arrays[name].shape, self.arrays[name].dtype.name)


def test_listing_names_reads_no_arrays():
    counted = CountingArrays(ARRAYS)
    renamed = Renamed(counted, {"x.kernel": "a", "x.scale": "b"}, "here", linear=["x.kernel"])
    assert counted.reads <= 1  # type checking of the annotation reads one
    counted.reads = 0
    assert set(renamed) == renamed.keys() == {"x.kernel", "x.scale"}
    assert "x.kernel" in renamed
    assert "a" not in renamed
    assert len(renamed) == 2
    assert counted.reads == 0
    np.testing.assert_array_equal(renamed["x.kernel"], ARRAYS["a"].T)
    np.testing.assert_array_equal(renamed["x.scale"], ARRAYS["b"])
    assert counted.reads == 2


def test_checked_validates_each_array_before_reading_it():
    counted = CountingArrays({"a": np.asfortranarray(ARRAYS["a"]), "b": ARRAYS["b"]})
    pairs = checked(counted, {"a": (2, 3), "b": (4,)}, "here")
    counted.reads = 0
    name, array = next(pairs)
    assert (name, counted.reads) == ("a", 1)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, ARRAYS["a"])
    with pytest.raises(InputError, match=r"^here: parameter b .*\(3,\).*\(4,\)$"):
        next(pairs)
    assert counted.reads == 1  # an array of the wrong shape is not read, as it may not fit in memory


def test_specs_have_shape_and_dtype_without_reading():
    counted = CountingArrays(ARRAYS)
    renamed = Renamed(counted, {"x.kernel": "a", "x.scale": "b"}, "here", linear=["x.kernel"])
    counted.reads = 0
    assert renamed.spec("x.kernel") == Spec((3, 2), "float32")
    assert renamed.spec("x.scale") == Spec((3,), "float16")
    assert counted.reads == 0


def test_stacks_prefix_names_of_their_parts():
    """Names within a part may have dots of their own."""
    stacks = Stacks({"one": CountingArrays(ARRAYS), "two": CountingArrays({"a.b": ARRAYS["b"]})})
    assert set(stacks) == {"one.a", "one.b", "two.a.b"}
    np.testing.assert_array_equal(stacks["two.a.b"], ARRAYS["b"])
    assert stacks.spec("two.a.b") == Spec((3,), "float16")
    assert stacks.spec("one.a") == Spec((2, 3), "float32")


@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64, "U3"])
def test_non_float_arrays_raise_input_error(dtype):
    with pytest.raises(InputError, match=r"^here: parameter a .*float16, bfloat16, float32"):
        next(checked({"a": np.zeros(3, dtype)}, {"a": (3,)}, "here"))


def test_saved_arrays_have_default_permissions(tmp_path):
    save_arrays(tmp_path / "a.safetensors", ARRAYS.items())
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize(
    ("found", "name"),
    [("ab", "c"), ("abcd", "d"), ("abd", "c")],
)
def test_missing_or_unknown_parameters_are_named(found, name):
    with pytest.raises(InputError, match=f"^here .*parameter {name}$"):
        check_names(found, "abc", "here")
    arrays = dict.fromkeys(found, ARRAYS["b"])
    with pytest.raises(InputError, match=f"^here .*parameter {name}$"):
        Renamed(arrays, {"x": "a", "y": "b", "z": "c"}, "here")
    with pytest.raises(InputError, match=f"^here .*parameter {name}$"):
        next(checked(arrays, dict.fromkeys("abc", (3,)), "here"))


def test_safetensors_round_trip(tmp_path):
    """Transposed and strided views are written in their logical order, not in memory order."""
    written = {**ARRAYS, "turned": ARRAYS["a"].T, "every_other": ARRAYS["b"][::2], "one": np.array(2.5)}
    save_arrays(tmp_path / "a.safetensors", written.items())
    arrays = SafetensorsArrays(tmp_path / "a.safetensors")
    assert arrays.keys() == written.keys()
    for name, array in written.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays.spec(name) == Spec(array.shape, array.dtype.name)


def test_failed_safetensors_write_leaves_no_file(tmp_path):
    """A limit on the file size simulates a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"a\.safetensors: .*File too large"):
            save_arrays(tmp_path / "a.safetensors", [("a", np.zeros(1000, np.float32))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_unsupported_safetensors_dtype_is_named(tmp_path):
    header = b'{"a":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    arrays = SafetensorsArrays(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"^here: parameter a .*F8_E4M3.*float16, bfloat16, float32"):
        check_spec(arrays.spec("a"), "a", (3,), "here")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.99])
def test_truncated_safetensors_raise_input_error(tmp_path, share):
    path = tmp_path / "a.safetensors"
    save_arrays(path, ARRAYS.items())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"a\.safetensors: "):
        SafetensorsArrays(path)


def test_missing_safetensors_raise_input_error(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(InputError, match=r"a\.safetensors: "):
        SafetensorsArrays(path)
    save_arrays(path, ARRAYS.items())
    arrays = SafetensorsArrays(path)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.safetensors: "):
        arrays["a"]
