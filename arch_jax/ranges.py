"""Ranges of numeric settings, checked wherever a component is made: by hand, from JSON, from the command line.

A field of the package's own components that says nothing is a finite number: an `int` of at least 1 that fits into 32
bits (a width, a depth, a number of classes), a `float` of at least 0 (a rate, a weight, a standard deviation). Others
say so in their annotation, with one of the names below or a `Range` of their own: `warmup: Count = 0`. A component in a
file of one's own has the ranges that it declares in this way. Of a tuple, every entry is held to it.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from arch_jax.errors import ArchJaxError, UsageError

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


def held(cls: type, declared: bool = False) -> type:
    """The dataclass or Linen module itself, whose instances from now on are refused where a number is out of its range.

    A class's own check comes first, since what it says is more to the point; but for numbers beyond all measure, of
    which it might make arrays.

    Args:
      cls: the class.
      declared: as for `range_of`.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    found = {name: (range_of(kind, declared), _takes_tuples(kind)) for name, kind in kinds.items()}
    ranges = {name: entry for name, entry in found.items() if entry[0] is not None}
    if not ranges:
        return cls
    sizes = {
        name: (Range(at_most=LARGEST), False) for name, (allowed, _) in ranges.items() if allowed.at_most == LARGEST
    }
    name = "__post_init__" if hasattr(cls, "__post_init__") else "__init__"
    inner = getattr(cls, name)

    @functools.wraps(inner)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        if name == "__post_init__":
            _check(self, sizes)
        try:
            inner(self, *args, **kwargs)
        except ArchJaxError:
            raise
        except Exception:
            _check(self, ranges)  # a number that its own check stumbled over
            raise
        _check(self, ranges)

    setattr(cls, name, checked)
    return cls


def _takes_tuples(annotation: Any) -> bool:
    """True for a field of numbers that takes them as a tuple alone."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    kinds = [one for one in parts or (annotation,) if one is not types.NoneType]
    return all(one is tuple or typing.get_origin(one) is tuple for one in kinds)


def _numbers(value: Any) -> Iterator[Any]:
    """A value, or every entry of a tuple and of the tuples in it."""
    if isinstance(value, tuple):
        for entry in value:
            yield from _numbers(entry)
    else:
        yield value


def _check(owner: Any, ranges: dict[str, tuple[Range, bool]]) -> None:
    for name, (allowed, listed) in ranges.items():
        value = getattr(owner, name, None)
        if listed and isinstance(value, int | float):
            raise UsageError(f"{name} is {value}; expected a tuple of numbers, such as ({value},)")
        for number in _numbers(value):
            if isinstance(number, int | float) and not isinstance(number, bool) and number not in allowed:
                shown = f"{value}, with {number} in it" if isinstance(value, tuple) else value
                large = allowed.at_most == LARGEST and number > LARGEST
                raise UsageError(f"{name} is {shown}; expected {f'at most {allowed.at_most}' if large else allowed}")
