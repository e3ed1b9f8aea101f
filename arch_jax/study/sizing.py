"""A model scaled to a budget: deeper and wider in its family's usual shape, until a count meets the target.

What a family's usual shape is follows from the fields that a model has, whose names mean the same in all of them:
`depth` and `width`, parts with `heads` and `kv_heads`, and `hidden`. A class for which that is not enough has a method
`sizes()` that yields overrides from small to large.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax import fields, registry
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment
from arch_jax.flops import count_flops
from arch_jax.layers.mixers.contract import unbound
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_step

Changes = dict[str, Any]
Count = Callable[[nn.Module], float]

#: The search stops after so many counts: each traces a model, which takes a tenth of a second and more.
_MOST = 50
#: A depth is skipped if its narrowest layers already exceed the target by this factor.
_LARGEST = 1e10


@dataclasses.dataclass(frozen=True)
class Sized:
    """A model that meets a budget.

    Attributes:
      module: the scaled model.
      changes: the fields that were changed; empty if the model met the budget already.
      value: its count.
    """

    module: nn.Module
    changes: Changes
    value: float


def parameters(experiment: Experiment, batch: Mapping[str, Any]) -> int:
    """The number of parameters of an experiment's model, of all players; nothing is computed.

    Args:
      experiment: the experiment; its data is not read.
      batch: the shapes of one batch.
    """
    task = _folded(experiment).task
    return registry.count(jax.eval_shape(task.init, jax.random.key(0), dict(batch))["params"])


def step_flops(experiment: Experiment, batch: Mapping[str, Any]) -> int:
    """Floating-point operations of one training step in matrix products and convolutions; nothing is computed.

    Args:
      experiment: the experiment; its data is not read.
      batch: the shapes of one batch.
    """
    folded = _folded(experiment)
    state = jax.eval_shape(lambda b: initial_state(folded, b), dict(batch))
    return count_flops(make_step(folded), state, dict(batch)).products


def scaled(
    module: nn.Module,
    target: float | int,
    measure: Count,
    *,
    tolerance: float = 0.02,
    name: str | None = None,
    unit: str = "parameters",
) -> Sized:
    """The model deepened and widened, or made smaller, until its count is within a tolerance of the target.

    Depth and width grow together. Of the depths that can meet the target, the one is taken at which width / depth is
    nearest to the model's own, and never less than half or more than twice of it. Depth counts in whole turns of a
    pattern of layers. Heads keep about their size, and as many query heads to a key-value head as they had (one alone
    stays one); where a width that they divide lies on neither side near enough, hidden layers make up the rest.

    Args:
      module: the model at its usual size.
      target: the desired count.
      measure: counts a model; called for at most some fifty models.
      tolerance: as a fraction of the target.
      name: the model's name in errors; its class's name by default.
      unit: the unit of the count in errors.

    Returns:
      The model itself if it meets the target already, or the scaled one.

    Raises:
      UsageError: a target that is not positive, a model without fields that scale it, or a target that no scaling
        meets, with the nearest count that was found.
    """
    name = name or fields.to_json(module)["module"]
    if not (target > 0 and math.isfinite(target)):
        raise UsageError(f"the budget of {unit} is {target}; expected a number above 0, such as 1e6")
    search = _Search(module, float(target), measure, tolerance)
    if search.meets({}):
        return search.sized({})
    for line in _lines(module, name, search):
        found = search.along(line)
        if found is not None:
            return search.sized(found)
    nearest = f"{search.nearest:,.0f}" if search.nearest < 1e7 else f"{search.nearest:.4g}"
    raise UsageError(
        f"the model {name!r} can't be scaled to {target:.6g} {unit} within {tolerance:.0%}; the nearest is {nearest}"
    )


class _Search:
    """Counts, each once, and the nearest to the target so far."""

    def __init__(self, module: nn.Module, target: float, measure: Count, tolerance: float) -> None:
        self.module, self.target, self.measure, self.tolerance = module, target, measure, tolerance
        self._counts: dict[tuple, float] = {}
        self.all_larger = self.all_smaller = False  # than the target, on the line looked along last

    def count(self, changes: Changes) -> float:
        """The count of the model with these overrides."""
        key = tuple(sorted(changes.items()))
        if key not in self._counts:
            self._counts[key] = float(self.measure(fields.override(self.module, changes)))
        return self._counts[key]

    def meets(self, changes: Changes) -> bool:
        """True if a size is within the tolerance."""
        return abs(self.count(changes) - self.target) <= self.tolerance * self.target

    def sized(self, changes: Changes) -> Sized:
        """A size, built."""
        return Sized(fields.override(self.module, changes), changes, self.count(changes))

    def expected(self, depths: Sequence[int], power: float) -> int:
        """The number of the depth to start at, if the depth grows as that power of the count."""
        goal = max(1, self.module.depth) * (self.target / max(self.count({}), 1)) ** power
        return min(range(len(depths)), key=lambda i: abs(math.log(depths[i] / goal)))

    @property
    def spent(self) -> bool:
        """True if the search has counted enough models."""
        return len(self._counts) >= _MOST

    @property
    def nearest(self) -> float:
        """The count nearest to the target so far."""
        return min(self._counts.values(), key=lambda value: abs(value - self.target))

    def crossing(self, length: int, at: Callable[[int], Changes], start: int | None = None) -> tuple[int, int]:
        """Two neighbours of a line with the target between them, nearest first; twice the same end if it lies outside.

        Counts grow about as powers do, so the next place to look at is interpolated between their logarithms; halving
        alternates with that where it progresses slowly. Whatever bends the line may have, the lower of the two is below
        the target and the upper one above it.

        Args:
          length: of the line.
          at: its sizes by number.
          start: the first size to count, and from there in steps that double: the far end of a line may be so large
            that it takes minutes to count. None begins with both ends.
        """
        below = lambda i: self.count(at(i)) <= self.target
        low, high = (0, length - 1) if start is None else (start, start)
        step = 1
        if start is not None and below(start):
            while below(high) and high < length - 1:
                low, high, step = high, min(high + step, length - 1), 2 * step
        elif start is not None:
            while not below(low) and low > 0:
                low, high, step = max(low - step, 0), low, 2 * step
        if not below(low):
            return low, low
        if below(high):
            return high, high
        halve = False
        while (before := high - low) > 1:
            least, goal, most = (
                math.log(max(n, 1e-9)) for n in (self.count(at(low)), self.target, self.count(at(high)))
            )
            share = 0.5 if halve else (goal - least) / (most - least)
            middle = min(max(low + round(share * before), low + 1), high - 1)
            low, high = (middle, high) if below(middle) else (low, middle)
            halve = not halve and high - low > before / 2
        return tuple(sorted((low, high), key=lambda i: abs(self.count(at(i)) - self.target)))

    def along(self, line: "_Line") -> Changes | None:
        """The size nearest to the target on a line, if it is within the tolerance."""
        if self.spent or not len(line):
            return None
        best, other = self.crossing(len(line), line.__getitem__, line.start)
        self.all_larger, self.all_smaller = best == other == 0, best == other == len(line) - 1
        if self.meets(line[best]):
            return line[best]
        if best == other:
            return None
        between = line.between(best)
        if not between:
            return None
        best, _ = self.crossing(len(between), between.__getitem__)
        return between[best] if self.meets(between[best]) else None


class _Line(Sequence):
    """Overrides from small to large.

    Args:
      sizes: the overrides.
      fine: for one of them, overrides around it in smaller steps, from small to large.
      start: number of the first size to count; None for a line whose ends are both soon counted.
    """

    def __init__(
        self,
        sizes: Sequence[Changes],
        fine: Callable[[Changes], list[Changes]] = lambda _: [],
        start: int | None = None,
    ) -> None:
        self._sizes, self._fine, self.start = sizes, fine, start

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, i: int) -> Changes:
        return self._sizes[i]

    def between(self, i: int) -> list[Changes]:
        """Smaller steps around number i."""
        return self._fine(self._sizes[i])


def _lines(module: nn.Module, name: str, search: _Search) -> Iterator[_Line]:
    """The lines to search, those with proportions nearest to the model's own first."""
    if hasattr(type(module), "sizes"):
        yield _Line(list(module.sizes()), start=0)
        return
    names = {field.name for field in fields.settings(module)}
    if not {"depth", "width"} & names:
        raise UsageError(
            f"the model {name!r} can't be scaled: it has no field depth or width, and its class no method sizes()"
        )
    shape = _Shape(module)
    if "width" not in names:
        depths = shape.depths(1.0)
        yield _Line([{"depth": depth} for depth in depths], start=search.expected(depths, 1))
    elif "depth" not in names:
        yield _Line(shape.widths(1.0, 2.0**20), shape.around)
    else:
        ratio = module.width / max(1, module.depth)
        middles = {depth: shape.nearest(ratio * depth) for depth in shape.depths(ratio)}
        depths = [depth for depth, size in middles.items() if size is not None]
        middle = lambda i: {"depth": depths[i]} | middles[depths[i]]
        if not depths:
            return
        # As deep as it is wide, a model has about the cube of its depth in parameters.
        best, other = search.crossing(len(depths), middle, search.expected(depths, 1 / 3))
        # Width / depth must move the further from its own, the further a depth is from the two that enclose the target.
        low, high = sorted((best, other))
        beyond = (
            [] if low == high else itertools.chain.from_iterable((low - i, high + i) for i in range(1, len(depths)))
        )
        least, most = 0, len(depths) - 1
        for i in dict.fromkeys([best, other, *beyond]):
            if least <= i <= most:
                widths = shape.widths(ratio * depths[i] / 2, 2 * ratio * depths[i])
                yield _Line([{"depth": depths[i]} | size for size in widths], shape.around)
                least = i if search.all_smaller else least
                most = i if search.all_larger else most


class _Shape:
    """The overrides that scale depth and width of a model in its own shape."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own = getattr(module, "width", None)
        self.parts = dict(_parts(module))
        tuples = [v for _, v in fields.walk(module) if isinstance(v, tuple) and v and isinstance(v[0], nn.Module)]
        self.turn = math.lcm(*map(len, tuples)) if tuples else 1

    def depths(self, ratio: float) -> list[int]:
        """Whole turns of the pattern: all of the small ones, then in steps of a twelfth."""
        found, turns = [], 1
        while (depth := turns * self.turn) * (ratio * depth / 2) ** 2 < _LARGEST and depth < 10_000:
            found.append(depth)
            turns += max(1, turns // 12)
        return found

    def widths(self, least: float, most: float) -> list[Changes]:
        """Sizes narrow to wide, in steps of a hundredth where all parts can have such widths."""
        found, width = [], max(1, math.ceil(least))
        while width <= most:
            size = self.size(width)
            if size is not None:
                found.append(size)
            width += max(1, width // 100) if size is not None else 1
        return found

    def nearest(self, width: float) -> Changes | None:
        """The size of the nearest width that all parts accept; None if there is none from half of it to twice."""
        middle = max(1, round(width))
        outwards = itertools.chain.from_iterable((middle - i, middle + i) for i in range(middle + 1))
        sizes = (self.size(near) for near in outwards if width / 2 <= near <= 2 * width)
        return next(filter(None, sizes), None)

    def size(self, width: int) -> Changes | None:
        """Overrides for a width; None if a part can't have it."""
        changes: Changes = {"width": width}
        for path, part in self.parts.items():
            heads = _heads(part, self.own, width)
            if heads is None:
                return None
            changes |= {f"{path}.{field}": value for field, value in heads.items()}
            if isinstance(getattr(part, "hidden", None), int):
                changes[f"{path}.hidden"] = _rounded(part.hidden * width / self.own)
        return changes

    def around(self, size: Changes) -> list[Changes]:
        """The same size with hidden layers from 0.6 to 1.6 of the width that goes with it."""
        share = size["width"] / self.own
        found: dict[tuple, Changes] = {}
        for i in range(-51, 48):
            change = {path: _rounded(hidden * share * 1.01**i) for path, hidden in self.hidden.items()}
            found.setdefault(tuple(change.values()), size | change)
        return list(found.values()) if self.hidden else []

    @functools.cached_property
    def hidden(self) -> dict[str, int]:
        """The hidden widths of the model's feed-forward parts, also those left at their default."""
        kinds = tuple(fields.components("feed_forward").values())
        found = {}
        for path, part in self.parts.items():
            if isinstance(part, kinds) and hasattr(part, "hidden"):
                counts = [_count(part, self.own, hidden) for hidden in (1, 2, part.hidden)]
                hidden = 1 + (counts[2] - counts[0]) / max(1, counts[1] - counts[0])  # a count grows evenly with it
                if hidden == int(hidden):
                    found[f"{path}.hidden"] = int(hidden)
        return found


def _parts(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of a module, those in tuples too, as (dotted path, part)."""
    for field in fields.settings(owner):
        value = getattr(owner, field.name)
        several = isinstance(value, tuple)
        for i, part in enumerate(value if several else (value,)):
            if dataclasses.is_dataclass(part):
                path = f"{prefix}{field.name}.{i}" if several else f"{prefix}{field.name}"
                yield path, part
                yield from _parts(part, f"{path}.")


def _count(part: nn.Module, width: int, hidden: int | None) -> int:
    """The parameters of a feed-forward part."""
    x = jax.ShapeDtypeStruct((1, 1, width), jnp.float32)
    return registry.count(jax.eval_shape(unbound(part).clone(hidden=hidden).init, jax.random.key(0), x)["params"])


def _rounded(hidden: float) -> int:
    """A hidden width: rounded to a multiple of 8 if that changes less than a hundredth."""
    return 8 * round(hidden / 8) if hidden >= 800 else max(1, round(hidden))


def _heads(part: Any, own: int, width: int) -> dict[str, int] | None:
    """Fields of a part that has `heads` for the width `own`, for another width; nothing for a part without.

    None if no heads of nearly the same size divide the width, the part refuses it, or it is large and no multiple
    of 8.
    """
    heads = getattr(part, "heads", None)
    if not isinstance(heads, int):
        return {} if (width < 800 or width % 8 == 0) and _takes(part, width) else None
    kv_heads, head_size = getattr(part, "kv_heads", None), getattr(part, "head_size", None)
    group = 1 if kv_heads in (None, 1) else heads // kv_heads
    own_size = head_size or own / heads
    off = lambda n: abs(math.log2(width / n / own_size))
    middle = width / own_size / group
    if head_size is not None:
        counts = [group * max(1, n) for n in (math.floor(middle), math.ceil(middle))]
    else:
        # Sizes of 8, 16, ... where such widths lie densely enough; even ones where pairs of dimensions are rotated.
        dense = width >= 128 * group and own_size >= 8
        unit = 8 if dense else 2 if getattr(part, "rope", None) is not None else 1
        near = range(math.ceil(middle / math.sqrt(2)), math.floor(middle * math.sqrt(2)) + 1)
        counts = [group * n for n in near if n and width % (group * n * unit) == 0]
        if not counts and width / group < own_size and width % (group * unit) == 0:
            counts = [group]  # so narrow that the fewest heads are smaller than their size
    for count in sorted(counts, key=off):
        found = {"heads": count}
        if kv_heads is not None:
            found["kv_heads"] = 1 if kv_heads == 1 else count // group
        if _takes(part, width, **found):
            return found
    return None


def _takes(part: Any, width: int, **changes: int) -> bool:
    """True if a part with these fields accepts that width, by its method `sizes` or `heads`."""
    says = [name for name in ("sizes", "heads") if callable(getattr(type(part), name, None))]
    try:
        return not says or getattr(unbound(part).clone(**changes), says[0])(width) is not None
    except UsageError:
        return False


def _folded(experiment: Experiment) -> Experiment:
    """With equal layers scanned, which counts the same and is traced in the time of one."""
    if getattr(experiment.model, "scan", None) is not False:
        return experiment
    return dataclasses.replace(experiment, model=experiment.model.clone(scan=True))
