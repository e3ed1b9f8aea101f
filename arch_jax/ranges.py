"""Ranges of numeric settings, checked wherever a component is made: by hand, from JSON, from the command line.

A field of the package's own components that says nothing is a finite number: an `int` of at least 1 that fits into 32
bits (a width, a depth, a number of classes), a `float` of at least 0 (a rate, a weight, a standard deviation). Others
say so in their annotation, with one of the names below or a `Range` of their own: `warmup: Count = 0`. A component in a
file of one's own has the ranges that it declares in this way. Of a tuple, every entry is held to it.
"""

import dataclasses
import math
import types
import typing
from typing import Annotated, Any

#: Sizes are numbers of 32 bits in compiled programs.
LARGEST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers from `at_least` to `at_most`, both included, or to `below`, excluded; None leaves an end open.

    Attributes:
      at_least: the smallest.
      at_most: the largest.
      below: the first that is too large.
      above: the last that is too small.
      infinite: whether infinity is among them, as "no limit".
    """

    at_least: float | int | None = None
    at_most: float | int | None = None
    below: float | int | None = None
    above: float | int | None = None
    infinite: bool = False

    def __contains__(self, value: float | int) -> bool:
        return (
            (math.isfinite(value) or (self.infinite and not math.isnan(value)))
            and (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
            and (self.above is None or value > self.above)
        )

    def __str__(self) -> str:
        most = None if self.at_most == LARGEST else self.at_most
        ends = {"at least": self.at_least, "more than": self.above, "at most": most, "less than": self.below}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None) or "a finite number"


#: None of something is a choice: a warm-up of 0 steps, a random seed.
Count = Annotated[int, Range(at_least=0, at_most=LARGEST)]
#: Negative, too: a bias, a shift, the lower end of an interval.
Signed = Annotated[float, Range()]
#: A part of a whole, which may be all of it.
Share = Annotated[float, Range(at_least=0, at_most=1)]
#: A part of a whole, but not all of it, such as a dropout's probability.
PartialShare = Annotated[float, Range(at_least=0, below=1)]
#: A divisor, a temperature, a scale.
Positive = Annotated[float, Range(above=0)]

#: An end of an interval that may be infinity.
Unlimited = Annotated[float, Range(at_least=0, infinite=True)]

_DEFAULTS = {int: Range(at_least=1, at_most=LARGEST), float: Range(at_least=0)}


def range_of(annotation: Any, declared: bool = False) -> Range | None:
    """The range that numbers of a field are held to; None for a field that takes none.

    Args:
      annotation: of the field.
      declared: whether only ranges count that the annotation declares.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        own = next((x for x in annotation.__metadata__ if isinstance(x, Range)), None)
        return own or range_of(arguments[0], declared)
    if origin in (typing.Union, types.UnionType) or origin is tuple:
        found = [x for x in (range_of(argument, declared) for argument in arguments) if x is not None]
        # An int beside a float is a float that was written without a point.
        return next((x for x in found if x != _DEFAULTS[int]), found[0]) if found else None
    return _DEFAULTS.get(annotation) if isinstance(annotation, type) and not declared else None
