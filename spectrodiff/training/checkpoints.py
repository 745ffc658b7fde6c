"""Checkpoints of a run: asynchronous, complete or absent, the newest few kept."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from spectrodiff.errors import InputError
from spectrodiff.training.state import TrainState


class Checkpoints:
    """Saves and restores a `TrainState` and a data iterator's state under `workdir/checkpoints`."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        folder = pathlib.Path(workdir).absolute() / "checkpoints"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to workdir {workdir}: {error.strerror}") from error
        self.manager = ocp.CheckpointManager(
            folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def save(self, step: int, state: TrainState, data: Any) -> None:
        if self.manager.latest_step() == step:
            return
        self.manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(data))
        )

    def restore(self, like: TrainState) -> tuple[TrainState, Any] | None:
        """The newest state and data iterator state, or None in a fresh workdir. `like` gives shapes and types."""
        step = self.manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self.manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore())
            )
        except ValueError as error:
            raise InputError(
                f"the checkpoint in {self.manager.directory} does not fit this config; use another --workdir ({error})"
            ) from error
        return restored["state"], restored["data"]

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()
