"""Sizes of the tiles that the flash attention kernels work on, by platform, head size and length."""

import dataclasses
import math

from arch_jax.errors import UsageError

__all__ = ["Blocks", "choose_blocks"]

LANES = 128


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Queries (`rows`) and keys (`columns`) of a tile; results do not depend on them beyond rounding.

    Attributes:
      rows, columns: of the forward kernel. On a TPU multiples of 128, on a GPU powers of two from 16 on.
      backward_rows, backward_columns: of the gradients' kernels; as forward where None.
      warps, stages: of a GPU's program (Triton's `num_warps` and `num_stages`).
    """

    rows: int
    columns: int
    backward_rows: int | None = None
    backward_columns: int | None = None
    warps: int = 4
    stages: int = 2

    @property
    def forward(self) -> tuple[int, int]:
        """(rows, columns) of the forward kernel."""
        return self.rows, self.columns

    @property
    def backward(self) -> tuple[int, int]:
        """(rows, columns) of the gradients' kernels."""
        return self.backward_rows or self.rows, self.backward_columns or self.columns

    def check(self, platform: str, interpreted: bool) -> None:
        """Refuses sizes that the platform's compiler can't take; interpreted kernels take any.

        Raises:
          UsageError: a size that is no multiple of 128 (TPU), or no power of two of at least 16 (GPU).
        """
        for name, size in zip(("rows", "columns") * 2, (*self.forward, *self.backward)):
            if size < 1:
                raise UsageError(f"blocks.{name} is {size}; expected an integer of at least 1")
            if interpreted:
                continue
            if platform == "tpu" and size % LANES:
                nearest = max(1, round(size / LANES)) * LANES
                raise UsageError(
                    f"blocks.{name} is {size}; expected a multiple of {LANES} on a TPU (the nearest is {nearest})"
                )
            if platform == "gpu" and (size < 16 or size & (size - 1)):
                nearest = max(16, 2 ** round(math.log2(size)))
                raise UsageError(
                    f"blocks.{name} is {size}; expected a power of two of at least 16 on a GPU "
                    f"(the nearest is {nearest})"
                )


#: The largest tiles, as (largest head size, bytes of a number, forward, backward). On a TPU they are what the v5e's
#: compiler takes in its 16 MiB; on a GPU what fits a program's registers by the count of floats, not yet timed.
TPU = (
    (128, 2, (512, 512), (512, 512)),
    (256, 2, (512, 512), (512, 512)),
    (128, 4, (512, 512), (512, 512)),
    (256, 4, (512, 256), (256, 256)),
)
GPU = (
    (64, 2, (128, 64), (64, 64)),
    (128, 2, (128, 64), (64, 64)),
    (256, 2, (64, 32), (32, 32)),
    (64, 4, (64, 32), (32, 32)),
    (128, 4, (32, 32), (32, 32)),
    (256, 4, (16, 16), (16, 16)),
)


def choose_blocks(
    platform: str,
    dim: int,
    itemsize: int,
    time: int,
    source: int,
    *,
    window: int | None = None,
    granularity: int | None = None,
) -> Blocks:
    """The tiles' sizes for an attention.

    Args:
      platform: "tpu" or "gpu".
      dim: the larger of the head sizes of keys and values.
      itemsize: bytes of a number of q.
      time, source: queries and keys.
      window: tiles much larger than the window would be computed mostly in vain.
      granularity: of a sparse pattern; tiles as large as its squares skip most, and need no mask.

    Raises:
      UsageError: a head size above 256.
    """
    if dim > 256:
        raise UsageError(f"the head size is {dim}; expected at most 256 for a Pallas kernel, or another implementation")
    table = TPU if platform == "tpu" else GPU
    _, _, forward, backward = next(row for row in table if dim <= row[0] and itemsize <= row[1])
    least = LANES if platform == "tpu" else 16
    sparse = None
    if window is not None:
        sparse = max(least, 1 << (window - 1).bit_length())
    if granularity is not None:
        squares = granularity if granularity > 1 else 128
        sparse = min(sparse or squares, max(least, 1 << (squares.bit_length() - 1)))
    fitted = lambda sizes: tuple(
        _fitted(size if sparse is None else min(size, sparse), length, least)
        for size, length in zip(sizes, (time, source))
    )
    (rows, columns), (backward_rows, backward_columns) = fitted(forward), fitted(backward)
    warps = 4 if dim <= 64 or platform == "tpu" else 8
    return Blocks(rows, columns, backward_rows, backward_columns, warps=warps)


def _fitted(size: int, length: int, least: int) -> int:
    """The largest size, halved as often as needed, that pads the length little more than the least size does."""
    needed = max(1, math.ceil(length / least)) * least
    while size > least and math.ceil(length / size) * size > 1.125 * needed:
        size //= 2
    return max(size, least)
