"""A run's weights, at any step that it kept, in the format that is handed around."""

import pathlib

import jax
from flax import nnx

from spectrodiff.errors import InputError
from spectrodiff.training.adaptation import Adaptation, everything
from spectrodiff.training.checkpoints import Checkpoints
from spectrodiff.training.loop import Task


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
    """Writes the weights of `step`, by default the newest, into `folder`, and returns the step.

    `task`, `adaptation` and `seed` are those that the run in `workdir` was given. `average` takes the moving averages
    of parameters, else the parameters themselves.

    Raises:
      InputError: the run has no checkpoint of that step.
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
