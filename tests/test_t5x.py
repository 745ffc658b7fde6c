"""Reading of T5X checkpoints, valid and damaged ones, written by t5x_writer.py."""

import dataclasses
import gzip
import json
import pathlib
import shutil

import flax.serialization
import ml_dtypes
import numpy as np
import pytest
from inputs import PAPER
from t5x_writer import write_t5x
from weights import gin_text, random_arrays

from spectrodiff.config import TokenizerConfig
from spectrodiff.errors import InputError
from spectrodiff.models.spectrogram_model import SpectrogramConfig
from spectrodiff.pretrained import t5x
from spectrodiff.pretrained.names import names

KERNEL = "decoder.layers_0.mlp.wi_0.kernel"  # the parameter that tests damage
SCALE = "token_encoder.layers_0.pre_mlp_layer_norm.scale"


def small_config(**sizes):
    """The small version of the paper's config with some sizes replaced."""
    return dataclasses.replace(PAPER, model=dataclasses.replace(PAPER.model, **sizes))


CONFIG = small_config(note_layers=2, context_layers=2)
ARRAYS = random_arrays(CONFIG)


def t5x_arrays(config=CONFIG, arrays=ARRAYS):
    return {name.t5x: arrays[name.ours] for name in names(config.model)}


HEAD_DIM_GIN = "T5Config.head_dim = 16\n"  # required, as sizes other than the published ones need a config.gin


@pytest.fixture(autouse=True)
def config_gin(tmp_path):
    """Writes a config.gin beside the checkpoints of a test."""
    (tmp_path / "config.gin").write_text(HEAD_DIM_GIN)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder inside a run's folder, with one array stored as zarr."""
    folder = tmp_path / "run" / "checkpoint_500000"
    folder.parent.mkdir()
    (folder.parent / "config.gin").write_text(HEAD_DIM_GIN)
    write_t5x(folder, t5x_arrays(), inline=lambda name, array: name != KERNEL)
    return folder


@pytest.fixture
def gin(folder):
    """A function that overwrites the config.gin of `folder`."""
    return (folder.parent / "config.gin").write_text


def read_all(folder):
    config, arrays, card = t5x.read(folder)
    return config, {name: arrays[name] for name in arrays}, card


# ---- reading


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"bucket": True},
        {"inline": lambda name, array: True},
        {"inline": lambda name, array: False},
    ],
    ids=["file", "bucket", "inline", "zarr"],
)
def test_all_storage_layouts_are_read_exactly(tmp_path, layout):
    write_t5x(tmp_path / "checkpoint_7", t5x_arrays(), **layout)
    config, arrays, card = read_all(tmp_path / "checkpoint_7")
    assert config.model == CONFIG.model
    assert card == {"steps": 500_000}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_dtypes_are_kept(tmp_path, dtype):
    write_t5x(tmp_path / "checkpoint_7", {name: array.astype(dtype) for name, array in t5x_arrays().items()})
    _, arrays, _ = read_all(tmp_path / "checkpoint_7")
    for name, array in arrays.items():
        assert array.dtype == dtype
        assert array.tobytes() == ARRAYS[name].astype(dtype).tobytes()


def test_arrays_in_flax_chunks_are_read(tmp_path, monkeypatch):
    """Flax splits arrays above one gigabyte."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    write_t5x(tmp_path / "checkpoint_7", t5x_arrays(), inline=lambda name, array: True)
    _, arrays, _ = read_all(tmp_path / "checkpoint_7")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_checkpoint_without_optimizer_state_is_read(folder):
    """The step is then unknown."""
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    del contents["optimizer"]["state"]
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    config, arrays, card = read_all(folder)
    assert (config.model, card) == (CONFIG.model, {})
    assert arrays.keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    "written", ["target.{name}/", "../elsewhere/target.{name}", "/run/checkpoint_500000/target.{name}"]
)
def test_array_paths_are_resolved_inside_the_checkpoint(folder, written):
    """Newer versions of tensorstore append a slash. Files outside the checkpoint are never read."""
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    leaf = contents["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wi_0"]
    leaf["kernel"]["kvstore"]["path"] = written.format(name=KERNEL)
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    np.testing.assert_array_equal(t5x.T5XArrays(folder)[KERNEL], t5x_arrays()[KERNEL])


def test_model_without_context_is_read(tmp_path):
    config = small_config(with_context=False, context_layers=0, note_layers=3)
    arrays = random_arrays(config)
    write_t5x(tmp_path / "checkpoint_1", t5x_arrays(config, arrays))
    found, read, _ = read_all(tmp_path / "checkpoint_1")
    assert found.model == config.model
    assert read.keys() == arrays.keys()
    assert not any("context" in name for name in read)


def test_find_returns_the_highest_step(tmp_path):
    for name in ("checkpoint_900", "checkpoint_12000", "checkpoint_99999.tmp", "checkpoint_20000"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint_900", "checkpoint_12000", "checkpoint_99999.tmp"):
        (tmp_path / name / "checkpoint").touch()
    assert t5x.find(tmp_path) == tmp_path / "checkpoint_12000"
    assert t5x.find(tmp_path / "checkpoint_900") == tmp_path / "checkpoint_900"
    assert t5x.find(tmp_path / "checkpoint_20000") is None


# ---- sizes


def test_tokenizer_config_is_the_published_one(folder, gin):
    assert t5x.read(folder)[0].tokenizer == TokenizerConfig(1, "slakh", CONFIG.model.max_tokens, ghost_ties=True)
    gin(HEAD_DIM_GIN + "NUM_VELOCITY_BINS = 127\nVocabularyConfig.num_velocity_bins = %NUM_VELOCITY_BINS\n")
    assert t5x.read(folder)[0].tokenizer.velocity_bins == 127


def test_head_dim_and_dropout_come_from_config_gin(tmp_path):
    """The file may be formatted as by T5X or written by hand."""
    arrays = random_arrays(PAPER)
    write_t5x(tmp_path / "checkpoint_1", t5x_arrays(PAPER, arrays))
    by_hand = "network.T5Config:\n  head_dim = 16  # small\n  num_heads = 2\n  dropout_rate = 0.25\n"
    expected = dataclasses.replace(PAPER.model, dropout=0.25)
    for text in (gin_text(SpectrogramConfig(PAPER.tokenizer, expected)), by_hand):
        (tmp_path / "config.gin").write_text(text)
        assert t5x.read(tmp_path / "checkpoint_1")[0].model == expected


@pytest.mark.parametrize(("rows", "bins"), [(1536, 1), (1664, 127)])
def test_velocity_bins_are_inferred_from_the_vocabulary_size(tmp_path, rows, bins):
    config = small_config(vocabulary_rows=rows)
    write_t5x(tmp_path / "checkpoint_1", t5x_arrays(config, random_arrays(config)))
    assert t5x.read(tmp_path / "checkpoint_1")[0].tokenizer.velocity_bins == bins


def test_unknown_vocabulary_size_raises_input_error(tmp_path):
    config = small_config(vocabulary_rows=1600)
    write_t5x(tmp_path / "checkpoint_1", t5x_arrays(config, random_arrays(config)))
    with pytest.raises(InputError, match=r"1600 token embeddings.*config\.gin"):
        t5x.read(tmp_path / "checkpoint_1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("T5Config.num_heads = 'many'", r"config\.gin has T5Config\.num_heads = 'many'"),
        ("T5Config.num_heads = %HEADS", r"config\.gin has T5Config\.num_heads = %HEADS"),
        ("T5Config.num_heads = True", r"config\.gin has T5Config\.num_heads = True"),
        ("T5Config.head_dim = 0", r"config\.gin has T5Config\.head_dim = 0"),
        ("T5Config.emb_dim = 1e20", r"config\.gin has T5Config\.emb_dim = 1e\+20"),
        ("T5Config.dropout_rate = None", r"config\.gin has T5Config\.dropout_rate = None"),
        ("T5Config.dropout_rate = 1.5", r"config\.gin has T5Config\.dropout_rate = 1\.5"),
        ("T5Config.context_positions = 'regular'", r"config\.gin has T5Config\.context_positions = 'regular'"),
        ("T5Config.num_decoder_layers = 2", r"parameter decoder\.layers_1\."),
        ("T5Config.num_encoder_layers = 1", r"parameter continuous_encoder\.layers_1\."),
        ("T5Config.head_dim = 64", r"heads is 0"),
        ("T5Config.head_dim", r"config\.gin: .*\(line 2\)"),
        ("VocabularyConfig.num_velocity_bins = 300", r"velocity_bins is 300"),
        ("\udcff", r"config\.gin: "),
    ],
)  # fmt: skip
def test_invalid_config_gin_raises_input_error(folder, text, message):
    (folder.parent / "config.gin").write_bytes((HEAD_DIM_GIN + text).encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        t5x.read(folder)
    assert "\n" not in str(error.value)


def test_unpublished_size_without_config_gin_raises_input_error(folder):
    (folder.parent / "config.gin").unlink()
    with pytest.raises(InputError, match=r"\b32 wide.*config"):
        t5x.read(folder)


def test_published_size_does_not_need_config_gin(tmp_path):
    config = small_config(width=512, heads=6, head_dim=64, mlp_width=8)
    write_t5x(tmp_path / "run" / "checkpoint_1", t5x_arrays(config, random_arrays(config)))
    assert t5x.read(tmp_path / "run" / "checkpoint_1")[0].model == config.model


def test_checkpoint_may_be_the_current_folder(folder, monkeypatch):
    """The config.gin of its parent is found."""
    monkeypatch.chdir(folder)
    assert t5x.read(pathlib.Path("."))[0].model == CONFIG.model


# ---- damaged checkpoints


def test_missing_or_extra_parameters_raise_input_error(tmp_path):
    for number, (edit, message) in enumerate(
        [
            (lambda p: p.pop(KERNEL), f"parameter {KERNEL}"),
            (lambda p: p.pop(SCALE), f"parameter {SCALE}"),
            (lambda p: p.pop("token_encoder.token_embedder.embedding"), "parameter token_encoder.token_embedder"),
            (lambda p: p.update({KERNEL: p[KERNEL][0]}), rf"parameter {KERNEL} .*\(64,\)"),
            (lambda p: p.update({"decoder.bias": np.zeros(2)}), "parameter decoder.bias"),
        ]
    ):
        parameters = t5x_arrays()
        edit(parameters)
        write_t5x(tmp_path / f"checkpoint_{number}", parameters)
        with pytest.raises(InputError, match=message):
            t5x.read(tmp_path / f"checkpoint_{number}")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_checkpoint_file_raises_input_error(folder, share):
    content = (folder / "checkpoint").read_bytes()
    (folder / "checkpoint").write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"checkpoint.* T5X"):
        t5x.read(folder)


@pytest.mark.parametrize(
    "content",
    [b"\xc1", b"text", b"\x90", b"\x81" * 5000, flax.serialization.msgpack_serialize({"optimizer": {"target": 3}}),
     flax.serialization.msgpack_serialize({"model": {}}), flax.serialization.msgpack_serialize(np.zeros(3))],
    ids=["no type", "text", "list", "deep", "no parameters", "no optimizer", "array"],
)  # fmt: skip
def test_file_of_another_format_raises_input_error(folder, content):
    (folder / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.* T5X"):
        t5x.read(folder)


def truncate_chunk(zarr):
    (zarr / "1.0").write_bytes((zarr / "1.0").read_bytes()[:-20])


def write_chunk_of_another_size(zarr):
    (zarr / "1.0").write_bytes(gzip.compress(bytes(12)))


def delete_chunk(zarr):
    (zarr / "0.1").unlink()


def truncate_metadata(zarr):
    (zarr / ".zarray").write_bytes((zarr / ".zarray").read_bytes()[:-20])


def delete_metadata(zarr):
    (zarr / ".zarray").unlink()


def enlarge_chunks(zarr):
    edit_metadata(zarr, chunks=[10**9, 10**9])


def edit_metadata(zarr, **values):
    (zarr / ".zarray").write_text(json.dumps(json.loads((zarr / ".zarray").read_text()) | values))


@pytest.mark.parametrize(
    "damage",
    [
        enlarge_chunks,
        truncate_chunk,
        write_chunk_of_another_size,
        delete_chunk,
        truncate_metadata,
        delete_metadata,
        shutil.rmtree,
    ],
)
def test_damaged_array_raises_input_error_with_its_name(folder, damage):
    damage(folder / f"target.{KERNEL}")
    ours = "decoder.blocks.0.mlp.wi_0.kernel"
    with pytest.raises(InputError, match=rf"parameter {KERNEL} from .*target\.{KERNEL}: .+") as error:
        t5x.read(folder)[1][ours]
    assert "\n" not in str(error.value)


def test_inline_array_of_a_changed_file_raises_input_error(folder):
    arrays = t5x.T5XArrays(folder)
    (folder / "checkpoint").write_bytes(b"")
    with pytest.raises(InputError, match=rf"parameter {SCALE} from .*checkpoint: "):
        arrays[SCALE]


def test_array_in_an_unsupported_store_raises_input_error(folder):
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    contents["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]["kvstore"] = {"driver": "memory"}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    with pytest.raises(InputError, match=rf"parameter {KERNEL} from "):
        t5x.T5XArrays(folder)[KERNEL]


def test_implausibly_large_array_is_not_read(folder):
    edit_metadata(folder / f"target.{KERNEL}", shape=[10**9, 10**9])
    assert t5x.T5XArrays(folder).spec(KERNEL).shape == (10**9, 10**9)
    with pytest.raises(InputError, match=r"mlp_width is 1000000000"):
        t5x.read(folder)


@pytest.mark.parametrize("step", ["abc", np.arange(3), np.float32(0.5), -1])
def test_invalid_step_raises_input_error(folder, step):
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    contents["optimizer"]["state"]["step"] = step
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    with pytest.raises(InputError, match=r"checkpoint .*\bstep "):
        t5x.read(folder)
