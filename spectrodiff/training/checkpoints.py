"""Checkpoints of a run: asynchronous, complete or absent, the newest few kept, and milestones."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import args as ocp_args

from spectrodiff.errors import InputError, reason
from spectrodiff.training.state import TrainState

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def _items(state: TrainState) -> dict[str, dict]:
    """A state in the parts that somebody may want alone."""
    return {
        "model": {"params": state.params, "frozen": state.frozen},
        "average": {"params": state.average},
        "training": {"step": state.step, "optimizer": state.optimizer},
    }


class Checkpoints:
    """Saves and restores a `TrainState`, and a run's place in its data and randomness, under `workdir/checkpoints`.

    Example n and the randomness of step n follow from the seed and n: `place`, a dict {"examples": seen, "seed": seed},
    is all the state that the data's iterator and the random numbers have.

    Every process of a run makes one and calls the same methods.
    """

    def __init__(self, workdir: pathlib.Path, keep: int | None, keep_every: int | None = None):
        """The newest `keep` stay, or all, and for good those of steps that `keep_every` divides.

        Raises InputError where `workdir` cannot be written.
        """
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to workdir {workdir}: {reason(error)}") from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, keep_period=keep_every, enable_async_checkpointing=True
        )
        self.manager = ocp.CheckpointManager(folder, options=options)

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, or None in a fresh workdir."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, place: dict[str, int]) -> None:
        """Starts to write a checkpoint, unless this step has one; training goes on meanwhile.

        Raises:
          InputError: this checkpoint, or the one before it, cannot be written.
        """
        if self.newest == step:
            return
        # Beforehand, because the threads that write have much to say about a disk that fills up under them.
        needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(self.manager.directory).free
        if free < needed:
            raise InputError(
                f"no room for the checkpoint of step {step} in {self.manager.directory}: "
                f"it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )
        items = {name: ocp_args.StandardSave(item) for name, item in _items(state).items()}
        with self._writing():
            self.manager.check_for_errors()
            self.manager.save(step, args=ocp_args.Composite(**items, data=ocp_args.JsonSave(place)))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """The newest state and its `place`. `like`, abstract, gives shapes, types, shardings.

        Raises:
          InputError: the checkpoint is of another config.
        """
        items = {name: ocp_args.StandardRestore(item) for name, item in _items(like).items()}
        found = self._restore(self.newest, {**items, "data": ocp_args.JsonRestore()})
        state = TrainState(
            step=found["training"]["step"],
            params=found["model"]["params"],
            frozen=found["model"]["frozen"],
            average=found["average"]["params"],
            optimizer=found["training"]["optimizer"],
        )
        return state, found["data"]

    def restore_parameters(self, step: int, params: Any, frozen: nnx.State, *, average: bool) -> tuple[Any, nnx.State]:
        """Trained parameters (or their moving average) and frozen ones of a step, without what only training needs.

        `params` and `frozen`, abstract, give shapes and types. Raises as `restore`.
        """
        items = {"model": {"params": params, "frozen": frozen}, "average": {"params": params}}
        found = self._restore(step, {name: ocp_args.StandardRestore(item) for name, item in items.items()})
        return found["average" if average else "model"]["params"], found["model"]["frozen"]

    def close(self) -> None:
        """Waits for what is being written. Raises InputError where that fails."""
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.close()

    def _restore(self, step: int, items: dict[str, Any]) -> Any:
        try:
            return self.manager.restore(step, args=ocp_args.Composite(**items))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise InputError(
                f"the checkpoint in {self.manager.directory} does not fit this config; use another --workdir"
                f" ({reason(error)})"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            known = (os.strerror(number) for number in _WRITE_ERRORS)  # what matters is far back in a long message
            why = next((words for words in known if words in str(error)), reason(error))
            raise InputError(f"cannot write a checkpoint to {self.manager.directory}: {why}") from error
