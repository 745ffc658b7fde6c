"""Checkpoints that a writer of T5X's format made, whole and damaged."""

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

KERNEL = "decoder.layers_0.mlp.wi_0.kernel"  # what is damaged
SCALE = "token_encoder.layers_0.pre_mlp_layer_norm.scale"


def change(**sizes):
    """The paper's config in small, with other sizes."""
    return dataclasses.replace(PAPER, model=dataclasses.replace(PAPER.model, **sizes))


CONFIG = change(note_layers=2, context_layers=2)
ARRAYS = random_arrays(CONFIG)


def theirs(config=CONFIG, arrays=ARRAYS):
    return {name.t5x: arrays[name.ours] for name in names(config.model)}


HEADS = "T5Config.head_dim = 16\n"  # as without a config.gin only the published sizes are known


@pytest.fixture(autouse=True)
def config_gin(tmp_path):
    """Lies beside what a test writes."""
    (tmp_path / "config.gin").write_text(HEADS)


@pytest.fixture
def folder(tmp_path):
    """A checkpoint's folder in a run's folder, with one array in zarr."""
    folder = tmp_path / "run" / "checkpoint_500000"
    folder.parent.mkdir()
    (folder.parent / "config.gin").write_text(HEADS)
    write_t5x(folder, theirs(), inline=lambda name, array: name != KERNEL)
    return folder


@pytest.fixture
def gin(folder):
    """Writes the config.gin beside it."""
    return (folder.parent / "config.gin").write_text


def read_all(folder):
    config, arrays, card = t5x.read(folder)
    return config, {name: arrays[name] for name in arrays}, card


# ---- what is written is what is read


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
def test_every_layout_is_read_to_the_bit(tmp_path, layout):
    write_t5x(tmp_path / "checkpoint_7", theirs(), **layout)
    config, arrays, card = read_all(tmp_path / "checkpoint_7")
    assert config.model == CONFIG.model
    assert card == {"steps": 500_000}
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, ARRAYS[name])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_other_types_stay_what_they_are(tmp_path, dtype):
    write_t5x(tmp_path / "checkpoint_7", {name: array.astype(dtype) for name, array in theirs().items()})
    _, arrays, _ = read_all(tmp_path / "checkpoint_7")
    for name, array in arrays.items():
        assert array.dtype == dtype
        assert array.tobytes() == ARRAYS[name].astype(dtype).tobytes()


def test_arrays_that_flax_cut_into_chunks(tmp_path, monkeypatch):
    """As it does from a gigabyte on."""
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 1000)
    write_t5x(tmp_path / "checkpoint_7", theirs(), inline=lambda name, array: True)
    _, arrays, _ = read_all(tmp_path / "checkpoint_7")
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_the_parameters_alone_will_do(folder):
    """Without the optimizer's state nothing tells the step."""
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    del contents["optimizer"]["state"]
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    config, arrays, card = read_all(folder)
    assert (config.model, card) == (CONFIG.model, {})
    assert arrays.keys() == ARRAYS.keys()


@pytest.mark.parametrize(
    "written", ["target.{name}/", "../elsewhere/target.{name}", "/run/checkpoint_500000/target.{name}"]
)
def test_arrays_lie_in_the_checkpoints_folder_whatever_the_path_says(folder, written):
    """Newer tensorstores end it with a slash; and nothing outside is ever read."""
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    leaf = contents["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wi_0"]
    leaf["kernel"]["kvstore"]["path"] = written.format(name=KERNEL)
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    np.testing.assert_array_equal(t5x.T5XArrays(folder)[KERNEL], theirs()[KERNEL])


def test_without_context(tmp_path):
    config = change(with_context=False, context_layers=0, note_layers=3)
    arrays = random_arrays(config)
    write_t5x(tmp_path / "checkpoint_1", theirs(config, arrays))
    found, read, _ = read_all(tmp_path / "checkpoint_1")
    assert found.model == config.model
    assert read.keys() == arrays.keys()
    assert not any("context" in name for name in read)


def test_the_highest_step_is_found(tmp_path):
    for name in ("checkpoint_900", "checkpoint_12000", "checkpoint_99999.tmp", "checkpoint_20000"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint_900", "checkpoint_12000", "checkpoint_99999.tmp"):
        (tmp_path / name / "checkpoint").touch()
    assert t5x.find(tmp_path) == tmp_path / "checkpoint_12000"
    assert t5x.find(tmp_path / "checkpoint_900") == tmp_path / "checkpoint_900"
    assert t5x.find(tmp_path / "checkpoint_20000") is None


# ---- sizes


def test_tokens_are_the_published_ones(folder, gin):
    assert t5x.read(folder)[0].tokenizer == TokenizerConfig(1, "slakh", CONFIG.model.max_tokens, ghost_ties=True)
    gin(HEADS + "NUM_VELOCITY_BINS = 127\nVocabularyConfig.num_velocity_bins = %NUM_VELOCITY_BINS\n")
    assert t5x.read(folder)[0].tokenizer.velocity_bins == 127


def test_config_gin_says_what_shapes_do_not(tmp_path):
    """Heads of 16, and dropout; as T5X writes it, and as a person would."""
    arrays = random_arrays(PAPER)
    write_t5x(tmp_path / "checkpoint_1", theirs(PAPER, arrays))
    by_hand = "network.T5Config:\n  head_dim = 16  # small\n  num_heads = 2\n  dropout_rate = 0.25\n"
    expected = dataclasses.replace(PAPER.model, dropout=0.25)
    for text in (gin_text(SpectrogramConfig(PAPER.tokenizer, expected)), by_hand):
        (tmp_path / "config.gin").write_text(text)
        assert t5x.read(tmp_path / "checkpoint_1")[0].model == expected


@pytest.mark.parametrize(("rows", "bins"), [(1536, 1), (1664, 127)])
def test_velocity_bins_follow_from_the_vocabulary(tmp_path, rows, bins):
    config = change(vocabulary_rows=rows)
    write_t5x(tmp_path / "checkpoint_1", theirs(config, random_arrays(config)))
    assert t5x.read(tmp_path / "checkpoint_1")[0].tokenizer.velocity_bins == bins


def test_a_vocabulary_that_nothing_tells_of(tmp_path):
    config = change(vocabulary_rows=1600)
    write_t5x(tmp_path / "checkpoint_1", theirs(config, random_arrays(config)))
    with pytest.raises(InputError, match=r"1600 token embeddings.*config\.gin"):
        t5x.read(tmp_path / "checkpoint_1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("T5Config.num_heads = 'many'", r"config\.gin has T5Config\.num_heads = 'many', which is not a whole number"),
        ("T5Config.num_heads = %HEADS", r"config\.gin has T5Config\.num_heads = %HEADS, which is not a whole number"),
        ("T5Config.num_heads = True", r"config\.gin has T5Config\.num_heads = True, which is not a whole number"),
        ("T5Config.head_dim = 0", r"config\.gin has T5Config\.head_dim = 0, which is not a whole number"),
        ("T5Config.emb_dim = 1e20", r"config\.gin has T5Config\.emb_dim = 1e\+20, which is not a whole number"),
        ("T5Config.dropout_rate = None", r"config\.gin has T5Config\.dropout_rate = None, which is not a number"),
        ("T5Config.dropout_rate = 1.5", r"config\.gin has T5Config\.dropout_rate = 1\.5, which is not a number from 0"),
        ("T5Config.context_positions = 'regular'", r"config\.gin has T5Config\.context_positions = 'regular'"),
        ("T5Config.num_decoder_layers = 2", r"lacks parameter decoder\.layers_1\."),
        ("T5Config.num_encoder_layers = 1", r"has the unknown parameter continuous_encoder\.layers_1\."),
        ("T5Config.head_dim = 64", r"heads is 0"),
        ("T5Config.head_dim", r"cannot read .*config\.gin: Couldn't parse statement"),
        ("VocabularyConfig.num_velocity_bins = 300", r"velocity_bins is 300"),
        ("\udcff", r"cannot read .*config\.gin"),
    ],
)  # fmt: skip
def test_a_config_gin_that_does_not_fit(folder, text, message):
    (folder.parent / "config.gin").write_bytes((HEADS + text).encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        t5x.read(folder)
    assert "\n" not in str(error.value)


def test_without_config_gin_only_published_sizes_are_known(folder):
    (folder.parent / "config.gin").unlink()
    with pytest.raises(InputError, match=r"\b32 wide.*config"):
        t5x.read(folder)


def test_a_published_size_needs_no_config_gin(tmp_path):
    config = change(width=512, heads=6, head_dim=64, mlp_width=8)
    write_t5x(tmp_path / "run" / "checkpoint_1", theirs(config, random_arrays(config)))
    assert t5x.read(tmp_path / "run" / "checkpoint_1")[0].model == config.model


def test_the_checkpoint_may_be_where_one_stands(folder, monkeypatch):
    """Its config.gin is then found all the same."""
    monkeypatch.chdir(folder)
    assert t5x.read(pathlib.Path("."))[0].model == CONFIG.model


# ---- damage


def test_missing_and_extra_parameters(tmp_path):
    for number, (edit, message) in enumerate(
        [
            (lambda p: p.pop(KERNEL), f"lacks parameter {KERNEL}"),
            (lambda p: p.pop(SCALE), f"lacks parameter {SCALE}"),
            (lambda p: p.pop("token_encoder.token_embedder.embedding"), "lacks parameter token_encoder.token_embedder"),
            (lambda p: p.update({KERNEL: p[KERNEL][0]}), rf"parameter {KERNEL} has shape \(64,\), expected two sizes"),
            (lambda p: p.update({"decoder.bias": np.zeros(2)}), "has the unknown parameter decoder.bias"),
        ]
    ):
        parameters = theirs()
        edit(parameters)
        write_t5x(tmp_path / f"checkpoint_{number}", parameters)
        with pytest.raises(InputError, match=message):
            t5x.read(tmp_path / f"checkpoint_{number}")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_file(folder, share):
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
def test_a_file_of_something_else(folder, content):
    (folder / "checkpoint").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.* T5X"):
        t5x.read(folder)


def chunk_cut(zarr):
    (zarr / "1.0").write_bytes((zarr / "1.0").read_bytes()[:-20])


def chunk_of_another_size(zarr):
    (zarr / "1.0").write_bytes(gzip.compress(bytes(12)))


def chunk_gone(zarr):
    (zarr / "0.1").unlink()


def metadata_cut(zarr):
    (zarr / ".zarray").write_bytes((zarr / ".zarray").read_bytes()[:-20])


def metadata_gone(zarr):
    (zarr / ".zarray").unlink()


def chunks_past_the_shape(zarr):
    edit_metadata(zarr, chunks=[10**9, 10**9])


def edit_metadata(zarr, **values):
    (zarr / ".zarray").write_text(json.dumps(json.loads((zarr / ".zarray").read_text()) | values))


@pytest.mark.parametrize(
    "damage",
    [chunks_past_the_shape, chunk_cut, chunk_of_another_size, chunk_gone, metadata_cut, metadata_gone, shutil.rmtree],
)
def test_a_damaged_array_is_named_and_never_zeros(folder, damage):
    damage(folder / f"target.{KERNEL}")
    ours = "decoder.blocks.0.mlp.wi_0.kernel"
    with pytest.raises(InputError, match=rf"^cannot read parameter {KERNEL} from .*target\.{KERNEL}: .+") as error:
        t5x.read(folder)[1][ours]
    assert "\n" not in str(error.value)


def test_an_inline_array_cut_out_of_its_file_later(folder):
    arrays = t5x.T5XArrays(folder)
    (folder / "checkpoint").write_bytes(b"")
    with pytest.raises(InputError, match=rf"^cannot read parameter {SCALE} from .*checkpoint: "):
        arrays[SCALE]


def test_an_array_in_a_store_without_a_path(folder):
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    contents["optimizer"]["target"]["decoder"]["layers_0"]["mlp"]["wi_0"]["kernel"]["kvstore"] = {"driver": "memory"}
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    with pytest.raises(InputError, match=rf"^cannot read parameter {KERNEL} from "):
        t5x.T5XArrays(folder)[KERNEL]


def test_an_array_too_large_for_any_memory_is_never_read(folder):
    edit_metadata(folder / f"target.{KERNEL}", shape=[10**9, 10**9])
    assert t5x.T5XArrays(folder).spec(KERNEL).shape == (10**9, 10**9)
    with pytest.raises(InputError, match=r"mlp_width is 1000000000"):
        t5x.read(folder)


@pytest.mark.parametrize("step", ["abc", np.arange(3), np.float32(0.5), -1])
def test_a_step_that_is_none(folder, step):
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    contents["optimizer"]["state"]["step"] = step
    (folder / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(contents))
    with pytest.raises(InputError, match=r"checkpoint has (a|the) step .*number$"):
        t5x.read(folder)
