"""How many operations a model asks for and how many a device can do: what they say together is utilisation.

An operation is one addition or multiplication of floating-point numbers in a matrix product or a convolution; all else
is small beside these, and left out, as is usual (Chowdhery et al. 2022, PaLM, appendix B).
"""

import functools
import math
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from spectrodiff.errors import reason


def count_flops(function: Callable, *args: Any) -> int:
    """The operations of `function(*args)`, which is traced but not run: `args` may be jax.ShapeDtypeStructs.

    It counts what the program says, on all devices together, and knows no backend. Of a `cond` the dearest branch
    counts; of a convolution only products with numbers of its input, not with padding or with the zeros between them
    that make it a transposed one. Kernels that are no JAX, such as cuDNN's attention, count as nothing.

    Raises:
      ValueError: there are products in a `while` loop, whose turns are not known, or in what says only what a part
        does: a `shard_map` or a Pallas kernel.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def step_flops(loss: Callable, *args: Any) -> int | None:
    """Those of a training step: three times those of `loss(*args)`, as the gradient takes two products for each one.

    The field's convention (Chowdhery et al. 2022, appendix B): what is recomputed to save memory does not count. Where
    parameters are frozen, one of the two products is spared, and this is up to half as much again as what is done.

    None where `count_flops` cannot count them. Training goes on without a figure of its log, so that is no error; the
    first process of a run says why on stderr.
    """
    traced = jax.make_jaxpr(loss)(*args).jaxpr  # what fails here fails in the step as well, and is the caller's
    try:
        return 3 * _count(traced)
    except Exception as error:  # also a mistake in counting, as of a primitive that JAX changed: no reason to end a run
        if jax.process_index() == 0:
            print(f"utilisation is unknown: {reason(error)}", file=sys.stderr, flush=True)
        return None


def _count(jaxpr: Jaxpr) -> int:
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _of_product(equation)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    if any(inner) and name in ("while", "shard_map", "pallas_call"):
        raise ValueError(f"cannot count the operations of a {name}")
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _of_product(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * terms * math.prod(equation.outvars[0].aval.shape)


def _of_convolution(equation: JaxprEqn) -> int:
    params = equation.params
    image, kernel, result = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    of_image, of_kernel, of_result = params["dimension_numbers"]
    # [batch, features, ...space]; the kernel's are [output features, input features of a group, ...space].
    products = result[of_result[0]] * result[of_result[1]] * kernel[of_kernel[1]]
    settings = zip(
        params["window_strides"], params["rhs_dilation"], params["lhs_dilation"], params["padding"], strict=True
    )
    for axis, (stride, kernel_dilation, image_dilation, (before, _)) in enumerate(settings, 2):
        place = stride * np.arange(result[of_result[axis]])[:, None] - before
        place = place + kernel_dilation * np.arange(kernel[of_kernel[axis]])
        last = image_dilation * (image[of_image[axis]] - 1)
        products *= int(((place >= 0) & (place <= last) & (place % image_dilation == 0)).sum())
    return 2 * products


_HALF = ("bfloat16", "float16")
# What is in jax.Device.device_kind: (16-bit types, operations a second of these, and of float32), dense, of what JAX
# calls one device: half a chip in the case of TPU v2 and v3. float32 is what JAX makes of it unless told otherwise:
# TF32 on NVIDIA's from Ampere on, one pass of bfloat16 on TPUs. Sources: NVIDIA's datasheets of H200, H100, A100, L4,
# V100 and T4, whose figures with sparsity are halved; Jouppi et al. 2020 (TPU v2, v3); Google Cloud's pages on TPU v4,
# v5e, v5p and v6e.
_PEAKS = {
    r"\bH100 PCIe": (_HALF, 756e12, 378e12),
    r"\bH[12]00 NVL": (_HALF, 835e12, 417e12),
    r"\bG?H[12]00": (_HALF, 989e12, 494e12),
    r"\bA100": (_HALF, 312e12, 156e12),
    r"\bL4\b": (_HALF, 121e12, 60e12),
    r"\bV100-SXM": (("float16",), 125e12, 15.7e12),
    r"\bV100-PCIE": (("float16",), 112e12, 14e12),
    r"\bT4\b": (("float16",), 65e12, 8.1e12),
    r"^TPU v2$": (("bfloat16",), 23e12, 23e12),
    r"^TPU v3$": (("bfloat16",), 61.5e12, 61.5e12),
    r"^TPU v4$": (("bfloat16",), 275e12, 275e12),
    r"^TPU v5( lite|e)$": (("bfloat16",), 197e12, 197e12),
    r"^TPU v5p?$": (("bfloat16",), 459e12, 459e12),
    r"^TPU v6( lite|e)$": (("bfloat16",), 918e12, 918e12),
}


def peak_flops(device: jax.Device, dtype: Any) -> float:
    """Operations a second of matrix products of `dtype` on one device, at best.

    Of the accelerators in the table above, what their maker says. Of any other device, so of every CPU, what a large
    product reached here and now, looked for once in a process: utilisation is then relative to that, not to what the
    device could do, and what else keeps the device busy makes it look better. All the devices that a CPU is divided
    into share its cores, each seeing all of them.
    """
    dtype = jnp.dtype(dtype).name
    return datasheet_peak(device.device_kind, dtype) or _measured_peak(device, dtype)


def datasheet_peak(kind: str, dtype: str) -> float | None:
    """The maker's figure for a device of this `device_kind`, where there is one in the table above."""
    found = [peaks for pattern, peaks in _PEAKS.items() if re.search(pattern, kind)]
    if not found or "MIG" in kind:  # a part of a device
        return None
    halves, half, single = found[0]
    return half if dtype in halves else single if dtype == "float32" else None


@functools.cache
def _measured_peak(device: jax.Device, dtype: str, tries: int = 4) -> float:
    size = 2048 if device.platform == "cpu" else 8192
    product = jax.jit(jnp.matmul)
    with jax.default_device(device):
        matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
        product(matrix, matrix).block_until_ready()  # compiles
        times = []
        for _ in range(tries):
            start = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
