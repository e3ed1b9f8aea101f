"""Images made twice or half as large with a low-pass filter against aliasing: upsample, filter, downsample.

Filtering before pixels are left out is Zhang's (2019, 1904.11486); the filter [1, 3, 3, 1] along each side is that of
StyleGAN2 (Karras et al. 2020, 1912.04958) and of the denoisers that took it from there (Song et al. 2021, 2011.13456,
appendix H.1). With two taps, [1, 1], halving is the mean of 2 x 2 pixels and doubling repeats every pixel.

The filter is the same along both sides, so that it is applied to one after the other, as a sum of shifted images.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from arch_jax.errors import UsageError

__all__ = ["check_taps", "doubled", "filtered", "halved", "upfirdn", "upfirdn_reference"]

Taps = tuple[float | int, ...]


def check_taps(taps: Taps) -> None:
    """Refuses a filter that would move the image by half a pixel, or has no sum to be divided by.

    Raises:
      UsageError: an odd number of taps, none, or numbers whose sum is not above 0.
    """
    if not taps or len(taps) % 2 or not sum(taps) > 0:
        raise UsageError(
            f"the filter is {taps}; expected an even number of weights whose sum is above 0, such as (1.0, 3.0, 3.0, "
            "1.0)"
        )


def upfirdn(
    x: Float[Array, "batch height width channels"],
    taps: Taps,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int] = (0, 0),
) -> Float[Array, "batch new_height new_width channels"]:
    """Zeros between pixels, zeros around them, convolution with the filter, and every `down`-th pixel of the result.

    A side of n pixels becomes (n up + padding - taps) // down + 1.

    Args:
      x: images.
      taps: weights of the filter along a side; they are divided by their sum, and multiplied by `up`, so that a
        constant image keeps its value away from the edges.
      up: each pixel is followed by up - 1 zeros.
      down: pixels from one that is kept to the next.
      padding: zeros (before, after) rows and columns.

    Returns:
      The dtype of x; summed in at least float32.
    """
    weights = [float(up * tap / sum(taps)) for tap in reversed(taps)]
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis in (1, 2):
        y = _along(y, axis, weights, up, down, padding)
    return y.astype(x.dtype)


def _along(x: jax.Array, axis: int, weights: list[float], up: int, down: int, padding: tuple[int, int]) -> jax.Array:
    """`upfirdn` along one axis; `weights` are the filter turned around."""
    edges = [(0, 0, 0)] * 4
    edges[axis] = (padding[0], padding[1] + up - 1, up - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    count = (x.shape[axis] - len(weights)) // down + 1
    part = lambda i: lax.slice_in_dim(x, i, i + (count - 1) * down + 1, down, axis)
    return sum(weight * part(i) for i, weight in enumerate(weights))


def upfirdn_reference(x, taps, up=1, down=1, padding=(0, 0)):
    """`upfirdn` as it is defined, pixel by pixel in float64, with the filter's outer product as a kernel."""
    taps = np.asarray(taps, np.float64)
    kernel = np.outer(taps, taps) / taps.sum() ** 2 * up**2
    batch, height, width, channels = x.shape
    before, size = padding[0], len(taps)
    room = np.zeros((batch, height * up + sum(padding), width * up + sum(padding), channels))
    for row, column in np.ndindex(height, width):
        room[:, before + row * up, before + column * up] = x[:, row, column]
    rows, columns = ((side - size) // down + 1 for side in room.shape[1:3])
    y = np.zeros((batch, rows, columns, channels))
    for row, column, i, j in np.ndindex(rows, columns, size, size):
        seen = room[:, row * down + size - 1 - i, column * down + size - 1 - j]
        y[:, row, column] += kernel[i, j] * seen
    return y


def halved(x: Float[Array, "batch height width channels"], taps: Taps) -> Float[Array, "batch half_height _ channels"]:
    """Filtered, and every second row and column kept."""
    check_taps(taps)
    margin = len(taps) // 2 - 1
    return upfirdn(x, taps, down=2, padding=(margin, margin))


def doubled(
    x: Float[Array, "batch height width channels"], taps: Taps, margin: int = 0
) -> Float[Array, "batch twice_height _ channels"]:
    """Zeros after every row and column, then filtered.

    Args:
      x: images.
      taps: of the filter.
      margin: rows and columns more on every side, into which the filter spreads the image: for a convolution of size
        2 margin + 1 without padding that follows, so that zeros are put around the image only once.
    """
    check_taps(taps)
    reach = len(taps) // 2 + margin
    return upfirdn(x, taps, up=2, padding=(reach, reach - 1))


def filtered(
    x: Float[Array, "batch height width channels"], taps: Taps, margin: int = 0
) -> Float[Array, "batch new_height new_width channels"]:
    """Filtered at the same resolution, for a convolution of stride 2 and size 2 margin + 1 without padding to follow.

    Args:
      x: images.
      taps: of the filter.
      margin: rows and columns more on every side than `halved` has need of.
    """
    check_taps(taps)
    reach = len(taps) // 2 - 1 + margin
    return upfirdn(x, taps, padding=(reach, reach))
