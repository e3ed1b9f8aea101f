"""Images as rows of square patches and back, and the random masking of a masked autoencoder."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError


def patches(images: Float[Array, "batch height width channels"], size: int) -> Float[Array, "batch patches pixels"]:
    """The image in squares of `size` pixels, row by row; in each, its pixels row by row, channels last.

    Raises:
      UsageError: `size` does not divide the image's sides.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size or not height or not width:
        raise UsageError(
            f"the images have {height} x {width} pixels, which patches of {size} don't divide; expected multiples of "
            f"{size}, such as {max(size, height // size * size)} x {max(size, width // size * size)}"
        )
    x = images.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, size * size * channels)


def unpatchify(
    rows: Float[Array, "batch patches pixels"], size: int, height: int, width: int
) -> Float[Array, "batch height width channels"]:
    """The image of these `patches`: the inverse.

    Args:
      rows: the patches.
      size: pixels on a side of one.
      height: of the image, in pixels.
      width: of the image, in pixels.

    Raises:
      UsageError: there are not as many patches as such an image has.
    """
    down, across = height // size, width // size
    if rows.shape[1] != down * across:
        raise UsageError(
            f"{rows.shape[1]} patches of {size} pixels make no image of {height} x {width} pixels; expected "
            f"{down * across}"
        )
    x = rows.reshape(len(rows), down, across, size, size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(rows), height, width, -1)


class Masking(NamedTuple):
    """Visible and masked patches.

    Attributes:
      kept: places of the visible patches, "batch visible", in the order in which they are encoded.
      restore: for each place, "batch patches", where its patch is among the visible ones followed by the masked ones.
      mask: True at masked places, "batch patches".
    """

    kept: Int[Array, "batch visible"]
    restore: Int[Array, "batch patches"]
    mask: Bool[Array, "batch patches"]


def visible_count(count: int, ratio: float) -> int:
    """The number of visible patches of `count`: count (1 - ratio), rounded down."""
    return int(count * (1 - ratio))


def random_masking(noise: Float[Array, "batch patches"], ratio: float) -> Masking:
    """Masks a fraction of each image's patches: those with the largest noise.

    Where the noise is drawn independently from one continuous distribution, that is uniform sampling without
    replacement, for each image by itself (He et al. 2021, 2111.06377, section 3 and "simple implementation").

    Args:
      noise: a number for each patch, such as uniform ones.
      ratio: the masked fraction; `visible_count` gives the number of visible patches.
    """
    count = visible_count(noise.shape[1], ratio)
    order = jnp.argsort(noise, axis=1)
    restore = jnp.argsort(order, axis=1)  # the inverse permutation
    return Masking(order[:, :count].astype(jnp.int32), restore.astype(jnp.int32), restore >= count)


def normalised(rows: Float[Array, "batch patches pixels"]) -> Float[Array, "batch patches pixels"]:
    """Each patch less its mean, through the root of its variance (2111.06377, section 3, "reconstruction target")."""
    mean, deviation = patch_statistics(rows)
    return ((rows - mean) / deviation).astype(rows.dtype)


def patch_statistics(
    rows: Float[Array, "batch patches pixels"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """The mean of each patch's numbers, and the root of their unbiased variance plus 1e-6, as the authors' code has it.

    In at least float32. A patch of one number has no unbiased variance; its deviation is NaN.
    """
    wide = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    variance = jnp.var(wide, axis=-1, keepdims=True, ddof=1)
    return wide.mean(-1, keepdims=True), jnp.sqrt(variance + 1e-6)
