"""What of a model trains: all of it, what a pattern names, or low-rank additions to that.

Parameters are named by dotted paths, such as `decoder.blocks.0.mlp.wo.kernel`; `re.search` decides what a pattern
matches. What is frozen gets no gradient and no memory of the optimiser's.
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

_EMBEDDINGS = "note_encoder.embedding.embedding"  # of tokens: the one table that knows programs
_ATTENTION = r"attention\.(query|key|value|out)\.kernel"


class Adaptation(NamedTuple):
    """How a model is taken apart into what trains and what stays, and put together again.

    `split(model, rngs)` is its structure, what trains (a pytree of float32), and an nnx.State of all else; `rngs` draws
    what is new. `merge(graph, trained, frozen)` is the whole model, which knows nothing of this: it is differentiated,
    evaluated and exported like any other.
    """

    split: Callable[[nnx.Module, nnx.Rngs], tuple[nnx.GraphDef, Any, nnx.State]]
    merge: Callable[[nnx.GraphDef, Any, nnx.State], nnx.Module]


@gin.configurable
def everything() -> Adaptation:
    """Every parameter trains."""
    return Adaptation(lambda model, rngs: states.split(model), nnx.merge)


@gin.configurable
def only(pattern: str, programs: Sequence[int] = ()) -> Adaptation:
    """The parameters that `pattern` matches train, and of the token embeddings the rows of `programs`.

    A program that was just added is a copy of its relative. With neither its row nor the table among what trains,
    nothing can tell the two apart, and the relative would become the new instrument. Rows of other programs stay.

    `split` raises InputError for a pattern that matches nothing, and for programs that cannot be.
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
    """To each matrix that `pattern` matches, scale / rank * a @ b is added, and only a and b train (Hu et al. 2021).

    a [inputs, rank] begins random and b [rank, outputs] at zero, so that the model begins as what it was. Rows of
    `programs` in the table of token embeddings train too; see `only`.

    Raises:
      InputError: `rank` or `scale` is out of range. `split` raises it for a pattern that matches no matrix, and for
        programs that cannot be.
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
                # Of unit-variance features, a makes unit-variance features.
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
    """Paths and leaves by name, in the order of names."""
    return {_name(path): (path, leaf) for path, leaf in sorted(nnx.to_flat_state(state), key=lambda x: _name(x[0]))}


def _matching(model: nnx.Module, pattern: str, rule: str, dimensions: int | None = None) -> set[str]:
    """Names of the parameters, or of those of so many dimensions, that `pattern` matches; there are some."""
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
    """The embeddings of `programs` by their row, unless the whole table is `training` anyway."""
    if not programs or _EMBEDDINGS in training:
        return {}
    check_range(programs, "the programs whose embeddings train")
    if _EMBEDDINGS not in _leaves(nnx.state(model, nnx.Param)):
        raise InputError("this network knows no programs: name none whose embeddings train")
    rows = model.note_encoder.vocabulary.program(np.array(programs))
    return {str(row): model.note_encoder.embedding.embedding[row] for row in rows}


def _replaced(state: nnx.State, added: Mapping[str, jax.Array], rows: Mapping[str, jax.Array]) -> nnx.State:
    """`state` with arrays added to leaves by their name, and with other rows in the table of token embeddings."""
    leaves = _leaves(state)
    for name, change in added.items():
        path, leaf = leaves[name]
        leaves[name] = path, leaf.replace(leaf[...] + change)
    if rows:
        path, leaf = leaves[_EMBEDDINGS]
        table = jnp.asarray(leaf[...]).at[np.array([*map(int, rows)])].set(jnp.stack([*rows.values()]))
        leaves[_EMBEDDINGS] = path, leaf.replace(table)
    return nnx.from_flat_state(leaves.values())
