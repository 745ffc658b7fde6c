"""Export of the weights of a run at any of its checkpoints, in the format that `Synthesizer.from_pretrained` reads."""

import pathlib

import jax
from flax import nnx

from spectrodiff.errors import InputError
from spectrodiff.training.adaptation import Adaptation, everything
from spectrodiff.training.checkpoints import Checkpoints
from spectrodiff.training.task import Task


def export(
    workdir: pathlib.Path,
    folder: pathlib.Path,
    task: Task,
    *,
    adaptation: Adaptation | None = None,
    seed: int = 0,
    step: int | None = None,
    ema: bool = True,
) -> int:
    """Writes the weights of `step`, by default of the newest checkpoint, to `folder`, and returns the step.

    `task`, `adaptation` and `seed` must be those of the run in `workdir`. The weights are the EMA of the parameters if
    `ema`, else the parameters themselves.

    Raises:
      InputError: the run has no checkpoint of that step, or it cannot be read.
    """
    adaptation = everything() if adaptation is None else adaptation
    graph, params, frozen = nnx.eval_shape(lambda: adaptation.split(task.build(nnx.Rngs(seed)), nnx.Rngs(seed)))
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), (params, frozen))
    checkpoints = Checkpoints(workdir, keep=None)
    kept = sorted(checkpoints.manager.all_steps())
    if not kept or step not in (None, *kept):
        asked = "" if step is None else f" of step {step}"
        raise InputError(f"{workdir} has no checkpoint{asked} (kept: {', '.join(map(str, kept)) or 'none'})")
    step = kept[-1] if step is None else step
    model = adaptation.merge(graph, *checkpoints.restore_parameters(step, *like, ema=ema))
    checkpoints.close()
    task.save(folder, model, {"steps": step, "seed": seed, "weights": "average" if ema else "last"})
    return step
