"""Convolution with 3 x 3 kernels by Winograd's minimal filtering: 16 products for 4 pixels in place of 36.

Lavin & Gray 2015 (1509.09308, section 4.1, F(2 x 2, 3 x 3)): of every tile d of 4 x 4 pixels and kernel g,

    Y = A^T [(G g G^T) * (B^T d B)] A,      * entry by entry, summed over channels

is the 2 x 2 pixels of the result. Tiles begin at every other pixel, so that one entry of all tiles is an image of half
the height and width, and each of the 16 entries is one product of matrices, "tiles channels" by "channels features". It
reads 4 times the image, where patches are 9 times. The transforms only add, subtract and halve. Gradients are those of
these lines, 16 products each.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

__all__ = ["winograd"]


@jax.jit  # under its name `arch_jax.flops` counts the convolution's products, as the literature does
def winograd(
    x: Float[Array, "batch height width channels"], kernel: Float[Array, "3 3 channels features"]
) -> Float[Array, "batch new_height new_width features"]:
    """Cross-correlation y_hwf = sum_ijc x_{h+i, w+j, c} k_ijcf, two rows and columns fewer than x has.

    In float32 some 1e-6 of the result's size from the exact sum, about three times as far as patches.

    Args:
      x: images, with the zeros around them.
      kernel: of 3 x 3 places.
    """
    (batch, height, width, channels), features = x.shape, kernel.shape[-1]
    height, width = height - 2, width - 2
    # The last tiles of an odd side reach one pixel further, which is cut off again.
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    tiles = [_of_tile(_every_other(row, 2)) for row in _of_tile(_every_other(x, 1))]
    kernels = [_of_kernel(row) for row in _of_kernel(kernel)]
    places = tiles[0][0].shape[:3]
    product = lambda tile, k: (tile.reshape(-1, channels) @ k).reshape(*places, features)
    products = [[product(tile, k) for tile, k in zip(*row)] for row in zip(tiles, kernels)]
    columns = [_of_result(column) for column in zip(*products)]
    pixels = [jnp.stack(_of_result(row), axis=3) for row in zip(*columns)]
    y = jnp.stack(pixels, axis=2).reshape(batch, 2 * places[1], 2 * places[2], features)
    return y[:, :height, :width]


def _every_other(x: Array, axis: int) -> list[Array]:
    """The first, second, third and fourth row (axis 1) or column (axis 2) of every tile."""
    last = x.shape[axis] - 3
    return [lax.slice_in_dim(x, i, i + last, 2, axis) for i in range(4)]


def _of_tile(d: Sequence[Array]) -> list[Array]:
    """B^T d."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _of_kernel(g: Array | Sequence[Array]) -> list[Array]:
    """G g."""
    return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]


def _of_result(m: Sequence[Array]) -> list[Array]:
    """A^T m."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
