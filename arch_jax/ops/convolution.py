"""Convolution over pictures, by XLA's own operation or as patches times a matrix.

On a CPU, XLA's convolution loses its threads inside a loop, and the train program is one: a LeNet-5 step (batch norm,
64 pictures) takes 41 ms there, 12 as patches, and 10 in PyTorch (`experiments/benchmarks/convolution.py`). On other
platforms XLA's own is taken.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from arch_jax.errors import unknown
from arch_jax.ops.platform import platform

__all__ = ["IMPLEMENTATIONS", "choose", "convolve", "convolve_reference"]


def choose(on: str | None = None) -> str:
    """Which implementation "auto" is on a platform ("cpu", "gpu", "tpu"; None for the one that is compiled for)."""
    return "patches" if (on or platform()) == "cpu" else "xla"


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size channels features"],
    stride: int = 1,
    padding: int | None = None,
    implementation: str = "auto",
) -> Float[Array, "batch new_height new_width features"]:
    """Cross-correlation with a square kernel: y_hwf = sum_ijc x_{h+i, w+j, c} k_ijcf.

    Args:
      x: pictures.
      kernel: its windows' weights.
      stride: pixels between windows.
      padding: zeros on every side; None for as many as keep the size at stride 1.
      implementation: "xla", "patches", or "auto", which `choose` decides.

    Raises:
      UsageError: unknown implementation, with the nearest names.
    """
    name = choose() if implementation == "auto" else implementation
    if name not in IMPLEMENTATIONS:
        raise unknown("implementation", name, [*IMPLEMENTATIONS, "auto"])
    size = kernel.shape[0]
    pad = ((size - 1) // 2, size // 2) if padding is None else (padding, padding)
    return IMPLEMENTATIONS[name](x, kernel, stride, pad)


def _xla(x: Array, kernel: Array, stride: int, pad: tuple[int, int]) -> Array:
    return lax.conv_general_dilated(x, kernel, (stride, stride), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _patches(x: Array, kernel: Array, stride: int, pad: tuple[int, int]) -> Array:
    """Every window side by side in a row, times the kernel as a matrix.

    First the rows of the windows, then their columns: 2 size slices instead of size^2, which compile in a third of the
    time.
    """
    size, _, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    last = lambda count: (count - 1) * stride + 1
    rows = jnp.concatenate([x[:, i : i + last(height) : stride] for i in range(size)], axis=-1)
    windows = jnp.concatenate([rows[:, :, j : j + last(width) : stride] for j in range(size)], axis=-1)
    return windows @ kernel.transpose(1, 0, 2, 3).reshape(size * size * channels, features)


IMPLEMENTATIONS = {"xla": _xla, "patches": _patches}


def convolve_reference(x, kernel, stride=1, padding=None):
    """`convolve` as it is defined, one place of the kernel after another."""
    size = kernel.shape[0]
    before, after = ((size - 1) // 2, size // 2) if padding is None else (padding, padding)
    x = jnp.pad(x, ((0, 0), (before, after), (before, after), (0, 0)))
    height, width = ((n - size) // stride + 1 for n in x.shape[1:3])
    y = 0
    for i in range(size):
        for j in range(size):
            rows, columns = i + stride * jnp.arange(height), j + stride * jnp.arange(width)
            y = y + jnp.einsum("bhwc,cf->bhwf", x[:, rows][:, :, columns], kernel[i, j])
    return y
