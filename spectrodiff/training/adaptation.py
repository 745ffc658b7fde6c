"""The choice of trainable parameters: all, those whose names match a pattern, or low-rank updates (LoRA) of these.

Parameters are named by dotted paths, such as `decoder.blocks.0.mlp.wo.kernel`, and patterns are matched by `re.search`.
Frozen parameters have no gradients and no optimiser state.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spectrodiff.config import is_whole
from spectrodiff.errors import InputError
from spectrodiff.training import state as states
from spectrodiff.training.programs import check_range

_EMBEDDINGS = "note_encoder.embedding.embedding"  # token embeddings, the only parameters specific to a program
_ATTENTION = r"attention\.(query|key|value|out)\.kernel"


class Adaptation(NamedTuple):
    """A pair of functions that split a model into trainable and frozen parameters, and merge them again.

    `split(model, rngs)` returns the model's graph, its trainable parameters (a pytree of float32 arrays) and an
    nnx.State of everything else; `rngs` initialises parameters that it adds. `merge(graph, trained, frozen)` returns
    the model, which has the same structure for every adaptation.
    """

    split: Callable[[nnx.Module, nnx.Rngs], tuple[nnx.GraphDef, Any, nnx.State]]
    merge: Callable[[nnx.GraphDef, Any, nnx.State], nnx.Module]


@gin.configurable
def everything() -> Adaptation:
    """Trains all parameters."""
    return Adaptation(lambda model, rngs: states.split(model), nnx.merge)


@gin.configurable
def only(pattern: str, programs: Sequence[int] = ()) -> Adaptation:
    """Trains the parameters whose names match `pattern`, and the rows of token embeddings of `programs`.

    The embedding of an added program starts as a copy of a related program's. Unless it is trained, the model cannot
    distinguish the two, and training would change both.

    The returned `split` raises InputError if `pattern` matches no parameter, or `programs` are not MIDI programs.
    """

    def split(model: nnx.Module, rngs: nnx.Rngs) -> tuple[nnx.GraphDef, Any, nnx.State]:
        names = _matching(model, pattern, "only")
        graph, whole, frozen = nnx.split(model, lambda path, leaf: _name(path) in names, ...)
        return graph, {"whole": whole, "rows": _rows(model, programs, names)}, frozen

    def merge(graph: nnx.GraphDef, trained: Any, frozen: nnx.State) -> nnx.Module:
        return nnx.merge(graph, trained["whole"], _replaced(frozen, {}, trained["rows"]))

    return Adaptation(split, merge)


@gin.configurable
def lora(pattern: str = _ATTENTION, rank: int = 8, scale: float = 16.0, programs: Sequence[int] = ()) -> Adaptation:
    """Trains low-rank updates of the matrices whose names match `pattern` (LoRA, Hu et al. 2021).

    The matrix W becomes W + scale / rank * a @ b, where a [inputs, rank] is initialised at random and b [rank, outputs]
    to 0. The rows of token embeddings of `programs` are trained too; see `only`.

    Raises:
      InputError: `rank` or `scale` is out of range. The returned `split` raises it if `pattern` matches no matrix, or
        `programs` are not MIDI programs.
    """
    if not is_whole(rank):
        raise InputError(f"lora.rank is {rank!r}; choose 1 or more")
    if not 0.0 < scale < math.inf:
        raise InputError(f"lora.scale is {scale!r}; choose a number above 0")

    def split(model: nnx.Module, rngs: nnx.Rngs) -> tuple[nnx.GraphDef, Any, nnx.State]:
        names = _matching(model, pattern, "lora", dimensions=2)
        graph, frozen = nnx.split(model)
        low_rank = {}
        for name, (_, leaf) in _leaves(frozen).items():
            if name in names:
                inputs, outputs = leaf.shape
                # Initialised so that x @ a has unit variance if x has.
                a = jax.random.normal(rngs.params(), (inputs, rank), jnp.float32) / math.sqrt(inputs)
                low_rank[name] = {"a": a, "b": jnp.zeros((rank, outputs), jnp.float32)}
        return graph, {"low_rank": low_rank, "rows": _rows(model, programs, names)}, frozen

    def merge(graph: nnx.GraphDef, trained: Any, frozen: nnx.State) -> nnx.Module:
        added = {name: scale / rank * (pair["a"] @ pair["b"]) for name, pair in trained["low_rank"].items()}
        return nnx.merge(graph, _replaced(frozen, added, trained["rows"]))

    return Adaptation(split, merge)


def _name(path: Iterable[Any]) -> str:
    return ".".join(map(str, path))


def _leaves(state: nnx.State) -> dict[str, tuple[tuple, nnx.Variable]]:
    """Returns paths and leaves by name, sorted by name."""
    return {_name(path): (path, leaf) for path, leaf in sorted(nnx.to_flat_state(state), key=lambda x: _name(x[0]))}


def _matching(model: nnx.Module, pattern: str, rule: str, dimensions: int | None = None) -> set[str]:
    """Returns the names that `pattern` matches, of all parameters or of those with the given number of dimensions.

    Raises:
      InputError: there are none.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f"{rule}.pattern {pattern!r} is no regular expression: {error}") from error
    leaves = _leaves(nnx.state(model, nnx.Param))
    names = [name for name, (_, leaf) in leaves.items() if dimensions in (None, leaf.ndim)]
    matching = set(filter(search, names))
    if not matching:
        kind = "parameter" if dimensions is None else "matrix"
        some = ", ".join(names[:: -(-len(names) // 4)])
        raise InputError(f"{rule}.pattern {pattern!r} matches the name of no {kind}; names are such as {some}")
    return matching


def _rows(model: nnx.Module, programs: Sequence[int], training: set[str]) -> dict[str, jax.Array]:
    """Returns the embeddings of `programs` by row number, or nothing if the whole table is in `training`.

    Raises:
      InputError: `programs` are not MIDI programs, or the model is not a spectrogram model.
    """
    if not programs or _EMBEDDINGS in training:
        return {}
    check_range(programs, "the programs whose embeddings train")
    if _EMBEDDINGS not in _leaves(nnx.state(model, nnx.Param)):
        raise InputError("this network has no embeddings of programs to train: leave `programs` out")
    rows = model.note_encoder.vocabulary.program(np.array(programs))
    return {str(row): model.note_encoder.embedding.embedding[row] for row in rows}


def _replaced(state: nnx.State, added: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> nnx.State:
    """Returns `state` with the arrays `added` to the leaves of these names, and with `rows` of token embeddings set."""
    leaves = _leaves(state)
    for name, change in added.items():
        path, leaf = leaves[name]
        leaves[name] = path, leaf.replace(leaf[...] + change)
    if rows:
        path, leaf = leaves[_EMBEDDINGS]
        table = jnp.asarray(leaf[...]).at[np.array([*map(int, rows)])].set(jnp.stack([*rows.values()]))
        leaves[_EMBEDDINGS] = path, leaf.replace(table)
    return nnx.from_flat_state(leaves.values())
