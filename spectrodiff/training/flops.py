"""Floating-point operations of programs and peak rates of devices, from which utilisation is computed.

Additions and multiplications in matrix products and convolutions are counted. All others are negligible, and not
counted, as is usual (Chowdhery et al. 2022, PaLM, appendix B).
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


def step_flops(loss: Callable, *args: Any) -> int | None:
    """Returns the number of operations of a training step, on all devices together: three times that of `loss(*args)`.

    The loss is traced but not run, and `args` may be jax.ShapeDtypeStructs. The gradient takes two products for each
    product of the loss. By convention (Chowdhery et al. 2022, appendix B), recomputation to save memory does not count.
    With frozen parameters, one of the two products may be unnecessary, so that the result is up to half again as large
    as the actual number. It does not hold for a loss that evaluates other networks, such as a teacher, which have no
    gradient.

    Returns None if the operations cannot be counted, and the first process of a run prints the reason to stderr. This
    is not an error, since only the utilisation depends on it.
    """
    traced = jax.make_jaxpr(loss)(*args).jaxpr  # not in the try: an error here would be one of the step as well
    try:
        return 3 * _count(traced)
    except Exception as error:  # including errors of counting itself, which should not end a run
        if jax.process_index() == 0:
            print(f"utilisation is unknown: {reason(error)}", file=sys.stderr, flush=True)
        return None


def _count(jaxpr: Jaxpr) -> int:
    """Returns the number of operations of a program.

    For a `cond`, the branch with the most operations counts; for a convolution, products with padding or with the zeros
    of a dilated input do not count. Kernels outside JAX, such as cuDNN's attention, are not counted.

    Raises:
      ValueError: there are products in a `while` loop, whose number of iterations is unknown, or in a `shard_map` or a
        Pallas kernel, whose programs are those of one shard or block.
    """
    return sum(map(_count_equation, jaxpr.eqns))


def _count_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _product_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(params)]
    if name == "cond":
        return max(inner)
    if any(inner) and name in ("while", "shard_map", "pallas_call"):
        raise ValueError(f"cannot count the operations of a {name}")
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _product_flops(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    terms = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * terms * math.prod(equation.outvars[0].aval.shape)


def _convolution_flops(equation: JaxprEqn) -> int:
    """Counts the products with elements of the input, without those with padding or zeros of a dilated input."""
    params = equation.params
    image, kernel, result = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    # The axes of [batch, features, ...space], and of the kernel's [output features, input features, ...space].
    image_axes, kernel_axes, result_axes = params["dimension_numbers"]
    products = result[result_axes[0]] * result[result_axes[1]] * kernel[kernel_axes[1]]
    settings = zip(
        params["window_strides"], params["rhs_dilation"], params["lhs_dilation"], params["padding"], strict=True
    )
    for axis, (stride, kernel_dilation, image_dilation, (padding, _)) in enumerate(settings, 2):
        # The position in the dilated image that each element of the result multiplies with each tap of the kernel.
        position = stride * np.arange(result[result_axes[axis]])[:, None] - padding
        position = position + kernel_dilation * np.arange(kernel[kernel_axes[axis]])
        last = image_dilation * (image[image_axes[axis]] - 1)
        products *= int(((position >= 0) & (position <= last) & (position % image_dilation == 0)).sum())
    return 2 * products


_HALF = ("bfloat16", "float16")
# Pattern of jax.Device.device_kind: (16-bit dtypes, their dense FLOP/s, FLOP/s of float32), per JAX device, which is
# half a chip for TPU v2 and v3. float32 is computed at JAX's default precision: TF32 on NVIDIA GPUs since Ampere, one
# pass of bfloat16 on TPUs. Sources: NVIDIA's datasheets of H200, H100, A100, L4, V100 and T4, with figures for sparse
# matrices halved; Jouppi et al. 2020 (TPU v2, v3); Google Cloud's documentation of TPU v4, v5e, v5p and v6e.
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
    """Returns the peak FLOP/s of matrix products of `dtype` on one device.

    For the accelerators in the table above, it is the manufacturer's figure. For other devices, including all CPUs, it
    is the speed of a large matrix product, measured once per process; it is underestimated, and utilisation is
    overestimated, if the device is busy otherwise. If a CPU is split into several devices, each is measured with all
    cores.
    """
    dtype = jnp.dtype(dtype).name
    return datasheet_peak(device.device_kind, dtype) or _measured_peak(device, dtype)


def datasheet_peak(kind: str, dtype: str) -> float | None:
    """Returns the manufacturer's FLOP/s for a device of this `device_kind`, or None if it is not in the table above."""
    found = [peaks for pattern, peaks in _PEAKS.items() if re.search(pattern, kind)]
    if not found or "MIG" in kind:  # MIG instances are parts of a device
        return None
    half_dtypes, half_peak, float32_peak = found[0]
    return half_peak if dtype in half_dtypes else float32_peak if dtype == "float32" else None


@functools.cache
def _measured_peak(device: jax.Device, dtype: str) -> float:
    size = 2048 if device.platform == "cpu" else 8192
    product = jax.jit(jnp.matmul)
    with jax.default_device(device):
        matrix = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
        product(matrix, matrix).block_until_ready()  # compiles
        times = []
        for _ in range(4):
            start = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
