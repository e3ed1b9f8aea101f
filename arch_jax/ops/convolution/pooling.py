"""2-D pooling: maximum and mean of windows that may overlap, and the mean of a whole image.

On a CPU the maximum is that of shifted slices: the gradient of XLA's own window reduction takes 7.8 ms for 8 images
of 32 x 32 x 64, and the slices 2.0.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from arch_jax.errors import UsageError
from arch_jax.ops.maximum import largest
from arch_jax.ops.platform import platform

__all__ = [
    "adaptive_average_pool",
    "average_pool",
    "global_average",
    "max_pool",
    "max_pool_reference",
    "windows_along",
]


def windows_along(side: int, size: int, stride: int, padding: int, ceil: bool) -> tuple[int, int]:
    """The number of windows along a side, and the padding after it that completes the last one.

    Args:
      side: pixels.
      size, stride, padding: of the windows; the padding is on both ends.
      ceil: a last window that is not whole counts, unless it starts in the padding after the image, as in PyTorch.

    Raises:
      UsageError: no window fits.
    """
    room = side + 2 * padding - size
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= side + padding:
        count -= 1
    if count < 1:
        raise UsageError(f"a side of {side} pixels has no window of {size}; expected images of at least {size}")
    return count, max(0, (count - 1) * stride + size - side - padding)


def max_pool(
    x: Float[Array, "batch height width channels"], size: int, stride: int, padding: int = 0, ceil: bool = False
) -> Float[Array, "batch h w channels"]:
    """The maximum over windows of `size` x `size`; where several are largest, the gradient goes to the first by rows.

    Args:
      x: images.
      size: pixels of a window on a side.
      stride: pixels between windows.
      padding: pixels on every side that are never the maximum.
      ceil: whether windows that extend past the end count, as in `windows_along`.

    Raises:
      UsageError: no window fits.
    """
    (height, below), (width, right) = (windows_along(n, size, stride, padding, ceil) for n in x.shape[1:3])
    pads = ((0, 0), (padding, below), (padding, right), (0, 0))
    if platform() != "cpu":
        window, steps = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -np.inf, lax.max, window, steps, pads)
    x = jnp.pad(x, pads, constant_values=-jnp.inf)
    # Columns first, so that of equal ones the first row's wins, and in it the first column's.
    x = largest([x[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(size)])
    return largest([x[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size)])


def max_pool_reference(x, size, stride, padding=0, ceil=False):
    """`max_pool` window by window."""
    (height, below), (width, right) = (windows_along(n, size, stride, padding, ceil) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, below), (padding, right), (0, 0)), constant_values=-jnp.inf)
    window = lambda h, w: x[:, h * stride : h * stride + size, w * stride : w * stride + size].max((1, 2))
    return jnp.stack([jnp.stack([window(h, w) for w in range(width)], 1) for h in range(height)], 1)


def average_pool(
    x: Float[Array, "batch height width channels"], size: int, stride: int, padding: int = 0
) -> Float[Array, "batch h w channels"]:
    """The mean over windows of `size` x `size`, in which padding counts as zeros.

    Args:
      x: images.
      size: pixels of a window on a side.
      stride: pixels between windows.
      padding: zeros on every side.

    Raises:
      UsageError: no window fits.
    """
    height, width = (windows_along(n, size, stride, padding, False)[0] for n in x.shape[1:3])
    y = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    y = y.astype(jnp.promote_types(x.dtype, jnp.float32))
    y = sum(y[:, :, j : j + (width - 1) * stride + 1 : stride] for j in range(size))
    y = sum(y[:, i : i + (height - 1) * stride + 1 : stride] for i in range(size))
    return (y / size**2).astype(x.dtype)


def global_average(x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
    """The mean of each channel over the image, summed in at least float32."""
    return x.mean((1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def adaptive_average_pool(
    x: Float[Array, "batch height width channels"], grid: int
) -> Float[Array, "batch grid grid channels"]:
    """The mean over grid x grid windows that cover the image: the i-th of a side of n pixels goes from
    floor(i n / grid) to ceil((i + 1) n / grid), as in PyTorch. An image of that size is returned as it is.

    Args:
      x: images.
      grid: windows along a side.
    """
    if x.shape[1:3] == (grid, grid):
        return x
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, columns = (jnp.asarray(_shares(side, grid), wide) for side in x.shape[1:3])
    return jnp.einsum("gh,bhwc,kw->bgkc", rows, x.astype(wide), columns).astype(x.dtype)


def _shares(side: int, grid: int) -> np.ndarray:
    """The weight of each of `side` pixels in each window, "grid side"."""
    starts = np.arange(grid) * side // grid
    ends = -(-(np.arange(grid) + 1) * side // grid)
    inside = (np.arange(side) >= starts[:, None]) & (np.arange(side) < ends[:, None])
    return inside / inside.sum(1, keepdims=True)
