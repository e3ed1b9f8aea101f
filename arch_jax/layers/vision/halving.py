"""Checks of networks that halve an image once between two levels, and of the images that they take."""

from collections.abc import Iterable, Mapping
from typing import Any

from arch_jax.errors import UsageError


def check_levels(
    resolution: int, sizes: Mapping[str, int], widths: tuple[int, ...], groups: int, levels: tuple[int, ...]
) -> None:
    """Checks the settings of a network with a level for each width, half as high and wide as the one before.

    Args:
      resolution: of the images that it is made for.
      sizes: numbers that have to be at least 1, by name.
      widths: channels of each level.
      groups: of the group norms.
      levels: those with attention.

    Raises:
      UsageError: a size below 1; widths that `groups` does not divide; a level that does not exist; an image that can't
        be halved between the levels.
    """
    for name, size in {"resolution": resolution, **sizes}.items():
        if size < 1:
            raise UsageError(f"{name} is {size}; expected at least 1")
    if not widths or groups < 1 or any(width < 1 or width % groups for width in widths):
        raise UsageError(f"widths is {widths} and groups is {groups}; expected multiples of the groups, at least one")
    for level in levels:
        if not 0 <= level < len(widths):
            raise UsageError(
                f"attention is {levels}; expected levels from 0 to {len(widths) - 1}, of which widths says"
            )
    factor = 2 ** (len(widths) - 1)
    if resolution % factor:
        near = max(factor, round(resolution / factor) * factor)
        raise UsageError(
            f"resolution is {resolution}, which {len(widths) - 1} convolutions can't halve; expected a multiple of "
            f"{factor}, such as {near}"
        )


def check_sides(factor: int, channels: int, shape: Any) -> None:
    """Refuses images that can't be halved often enough, or of another number of channels.

    Args:
      factor: both sides have to be multiples of it.
      channels: of the model.
      shape: "height width channels".

    Raises:
      UsageError: if the image's sides are no multiples of `factor`, or it has another number of channels.
    """
    if len(shape) == 3 and not (shape[0] % factor or shape[1] % factor) and shape[2] == channels and min(shape) > 0:
        return
    near = [max(factor, round(side / factor) * factor) for side in (*shape, factor, factor)[:2]]
    raise UsageError(
        f"the images have the shape {' x '.join(map(str, shape))}, and the model takes sides that are multiples of "
        f"{factor} with {channels} channels; expected such as {near[0]} x {near[1]} x {channels}"
    )


def check_heads(name: str, size: int, widths: Iterable[int]) -> None:
    """Refuses heads of attention that their channels can't be cut into.

    Args:
      name: of the field, such as "head_size".
      size: its value, heads or channels of one.
      widths: channels of every level with attention.

    Raises:
      UsageError: a width that `size` does not divide.
    """
    for width in sorted(set(widths)):
        if size < 1 or width % size:
            near = min((d for d in range(1, width + 1) if width % d == 0), key=lambda d: abs(d - size))
            raise UsageError(
                f"{name} is {size}, which does not divide the width {width}; expected a divisor, such as {near}"
            )


class HalvedImages:
    """Of a network with `channels` and `widths`, between whose levels images are halved: which of them it can take."""

    channels: int
    widths: tuple[int, ...]

    @property
    def factor(self) -> int:
        """Both sides of an image have to be multiples of it."""
        return 2 ** (len(self.widths) - 1)

    def check(self, shape: Any) -> None:
        """Refuses images that the network can't take.

        Raises:
          UsageError: `shape` ("height width channels") has another number of channels, or sides that can't be halved.
        """
        check_sides(self.factor, self.channels, shape)
