"""Checkpoints of a training run, which are written asynchronously and atomically."""

import contextlib
import errno
import gc
import json
import logging
import os
import pathlib
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import args as ocp_args

from spectrodiff.errors import InputError, reason
from spectrodiff.files import utf8_path
from spectrodiff.training.state import TrainState

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
# Exceptions, and status codes in TensorStore's messages, for missing or truncated files and wrong checksums.
_DAMAGE_ERRORS = (OSError, KeyError, json.JSONDecodeError)
_DAMAGE_CODES = ("NOT_FOUND:", "DATA_LOSS:", "OUT_OF_RANGE:")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppresses the messages on stderr of coroutines and futures that a failed restoration leaves behind."""
    hook, log = sys.unraisablehook, logging.getLogger("asyncio")
    sys.unraisablehook, log.disabled = lambda _: None, True
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            yield
        except Exception as error:
            for raised in filter(None, (error, error.__cause__, error.__context__)):
                traceback.clear_frames(raised.__traceback__)  # frames keep the coroutines alive
            gc.collect()
            raise
        finally:
            sys.unraisablehook, log.disabled = hook, False


def _items(state: TrainState) -> dict[str, dict]:
    """Returns the items of a checkpoint, which can be restored separately."""
    return {
        "model": {"params": state.params, "frozen": state.frozen},
        "average": {"params": state.ema},
        "training": {"step": state.step, "optimizer": state.optimizer},
    }


class Checkpoints:
    """Saves and restores a `TrainState` and the progress of a run under `workdir/checkpoints`.

    The progress is a dict {"examples": number seen, "seed": seed}. It is the whole state of data iterator and random
    numbers, since example n and the random numbers of step n depend on the seed and n alone.

    In a run of several processes, each creates an instance and calls the same methods.
    """

    def __init__(self, workdir: pathlib.Path, keep: int | None, keep_every: int | None = None):
        """Opens or creates the folder. The newest `keep` checkpoints are kept (None: all).

        Checkpoints of steps that are multiples of `keep_every` are never deleted.

        Raises:
          InputError: `workdir` cannot be written to, is a URL or is not valid UTF-8.
        """
        self._workdir = utf8_path(workdir)
        folder = self._workdir / "checkpoints"
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
        """The step of the newest checkpoint, or None if there is none."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, progress: dict[str, int]) -> None:
        """Starts to write a checkpoint asynchronously, unless this step has one.

        Raises:
          InputError: this checkpoint or the previous one cannot be written.
        """
        if self.newest == step:
            return
        # Checked first, because the writing threads print many errors when a disk is full.
        needed, free = sum(x.nbytes for x in jax.tree.leaves(state)), shutil.disk_usage(self.manager.directory).free
        if free < needed:
            raise InputError(
                f"no room for the checkpoint of step {step} in {self.manager.directory}: "
                f"it takes {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free"
            )
        items = {name: ocp_args.StandardSave(item) for name, item in _items(state).items()}
        with self._writing():
            self.manager.check_for_errors()
            self.manager.save(step, args=ocp_args.Composite(**items, data=ocp_args.JsonSave(progress)))

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, int]]:
        """Restores the newest state and the progress. `like` has the shapes, dtypes and shardings of the state.

        In a run of one process, damaged checkpoints are skipped with a message and moved to the workdir, so that their
        steps can be saved again.

        Raises:
          InputError: the checkpoint has another structure than `like`, or all checkpoints are damaged.
        """
        items = {name: ocp_args.StandardRestore(item) for name, item in _items(like).items()}
        found = self._restore_newest({**items, "data": ocp_args.JsonRestore()})
        state = TrainState(
            step=found["training"]["step"],
            params=found["model"]["params"],
            frozen=found["model"]["frozen"],
            ema=found["average"]["params"],
            optimizer=found["training"]["optimizer"],
        )
        return state, found["data"]

    def restore_parameters(self, step: int, params: Any, frozen: nnx.State, *, ema: bool) -> tuple[Any, nnx.State]:
        """Restores the trainable parameters of a step (with `ema`, their EMA) and the frozen ones.

        `params` and `frozen` have their shapes, dtypes and shardings.

        Raises:
          InputError: the checkpoint has another structure, or is damaged.
        """
        items = {"model": {"params": params, "frozen": frozen}, "average": {"params": params}}
        found = self._restore(step, {name: ocp_args.StandardRestore(item) for name, item in items.items()})
        return found["average" if ema else "model"]["params"], found["model"]["frozen"]

    def close(self) -> None:
        """Waits until the last checkpoint has been written.

        Raises:
          InputError: it cannot be written.
        """
        with self._writing():
            self.manager.wait_until_finished()
            self.manager.close()

    def _restore_newest(self, items: dict[str, Any]) -> Any:
        """Restores the newest checkpoint that is not damaged; see `restore`."""
        steps = sorted(self.manager.all_steps(), reverse=True)
        try:
            return self._restore(steps[0], items)
        except InputError as error:
            if jax.process_count() > 1:  # other processes may have restored it
                raise
            first = error
        # Newer checkpoints are only moved once an older one was restored: with another config, none can be.
        for index, step in enumerate(steps[1:], start=1):
            with contextlib.suppress(InputError):
                found = self._restore(step, items)
                self._put_aside(steps[:index])
                print(f"going on from step {step}", flush=True)
                return found
        raise first

    def _put_aside(self, steps: Sequence[int]) -> None:
        """Moves the checkpoints of `steps`, which are damaged, to the workdir."""
        for step in steps:
            aside = self._workdir / f"damaged_checkpoint_{step}"
            shutil.rmtree(aside, ignore_errors=True)
            with self._writing():
                (self.manager.directory / str(step)).rename(aside)
            print(f"the checkpoint of step {step} is damaged and was moved to {aside}", flush=True)
        self.manager.reload()

    def _restore(self, step: int, items: dict[str, Any]) -> Any:
        """Restores the items of a step; raises InputError if they are damaged or do not fit the config."""
        try:
            with _quietly():
                return self.manager.restore(step, args=ocp_args.Composite(**items))
        except Exception as error:  # orbax raises exceptions of many types
            why = error.__cause__ or error
            where = f"the checkpoint of step {step} in {self.manager.directory}"
            if isinstance(why, _DAMAGE_ERRORS) or any(code in str(why) for code in _DAMAGE_CODES):
                raise InputError(f"{where} is damaged: delete it, or use another --workdir ({reason(why)})") from error
            raise InputError(f"{where} does not fit this config; use another --workdir ({reason(why)})") from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns errors of writing into InputErrors."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            known = (os.strerror(number) for number in _WRITE_ERRORS)  # the cause is at the end of a long message
            why = next((words for words in known if words in str(error)), reason(error))
            raise InputError(f"cannot write a checkpoint to {self.manager.directory}: {why}") from error
