"""Values that a field takes, by its annotation: checked wherever a component is made, by hand, from JSON, by `clone`.

A field of the package's own components takes what its annotation says: one of a `Literal`'s choices, true or false, an
integer, a number, text, a tuple of such, an instance of a component; None where it is an option. Numbers are then held
to their ranges (`arch_jax.ranges`). Numpy's scalars, whole numbers with a point and lists become what the annotation
says. Arrays, traced ones too, are left alone, as is a field whose annotation says nothing of this kind.

A component in a file of one's own is held to the choices, kinds of component and ranges that it declares. Where a
component is expected, any object of one's own will do; what a name or a number can't be is one.
"""

import dataclasses
import difflib
import functools
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np

from arch_jax.errors import ArchJaxError, UsageError, nearest
from arch_jax.ranges import LARGEST, Range, range_of


@dataclasses.dataclass(frozen=True)
class Kind:
    """Marks an annotation with the kind of component that a field takes: `Annotated[nn.Module, Kind("mixer")]`."""

    name: str


#: Name -> class and kind of every component imported so far.
COMPONENTS: dict[str, tuple[type, str]] = {}
#: Class -> its name.
NAMES: dict[type, str] = {}
#: The dtypes that have a name in JSON.
FLOATS = ("float32", "bfloat16", "float16", "float64")

#: Takes a value of a field: gives it back, or what it stands for, or raises `_Refused`.
_Take = Callable[[Any], Any]

_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_PLAIN = {str, bytes, int, float, complex, bool, list, tuple, set, frozenset, types.NoneType}
#: How an instance is made of text, where it is no component's name.
_MADE = {"model": "arch_jax.create({!r})", "objective": "arch_jax.objective({!r})"}
#: Values of a field that are known to be in its range, so that most are looked at once.
_KNOWN = 64


class _Refused(Exception):
    """A value that can't be taken; the parts of the sentence.

    Attributes:
      expected: what was.
      found: what there is, from its verb on.
      near: the nearest valid choice, or an example, as the end of the sentence.
      entry: which of a tuple's entries it is about.
    """

    def __init__(self, value: Any, expected: str, found: str = "", near: str = "", entry: str = "") -> None:
        super().__init__(expected)
        self.expected, self.found, self.near, self.entry = expected, found or f"is {_shown(value)}", near, entry

    def __str__(self) -> str:
        return f"{self.entry} {self.found}; expected {self.expected}{self.near}"


def near_choice(value: Any, choices: tuple) -> str:
    """The choice that text was meant to be, as the end of a sentence that has named all; empty if none is near."""
    near = nearest(value, map(str, choices), most=1) if isinstance(value, str) else ""
    return near if near.startswith("; the nearest") else ""


def one_of(choices: tuple) -> str:
    """Choices in a sentence."""
    return f"one of {', '.join(map(repr, choices))}"


def held(cls: type, declared: bool = False) -> type:
    """The dataclass or Linen module itself, whose instances from now on are refused where a field can't take its value.

    A class's own check comes first, where what it says is more to the point: one sentence that names the field. Not for
    numbers beyond all measure, of which it might make arrays; and where it stumbles over a value, that is named.

    Args:
      cls: the class.
      declared: whether only choices, components and ranges count that the annotations declare.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(cls) if field.init}
    if "parent" in kinds:  # Linen's own
        kinds = {name: kind for name, kind in kinds.items() if name not in ("parent", "name")}
    takes: list[tuple[str, set[type], _Take]] = []
    ranges: list[tuple[str, Range, set]] = []
    for field, kind in kinds.items():
        exact: set[type] = set()
        if (take := _take(kind, declared, exact)) is not None:
            takes.append((field, exact, take))
        if (allowed := range_of(kind, declared)) is not None:
            ranges.append((field, allowed, set()))
    if not takes and not ranges:
        return cls
    name = "__post_init__" if hasattr(cls, "__post_init__") else "__init__"
    inner = getattr(cls, name)
    early = name == "__post_init__"

    @functools.wraps(inner)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        problem = None
        if early:
            problem = _problem(self, cls, takes)
            _hold(self, ranges, sizes=True)
        try:
            inner(self, *args, **kwargs)
        except ArchJaxError as own:
            if problem is not None and not re.fullmatch(rf".*\b{re.escape(problem[0])}\b.*", str(own)):
                raise UsageError(problem[1]) from None
            raise
        except Exception:
            if problem is not None:
                raise UsageError(problem[1]) from None
            _hold(self, ranges)  # a number that its own check stumbled over
            raise
        if problem is not None or not early:  # its own check may have made another value of it
            problem = _problem(self, cls, takes)
            if problem is not None:
                raise UsageError(problem[1])
        _hold(self, ranges)

    setattr(cls, name, checked)
    return cls


def _values(owner: Any, fields: list[tuple]) -> Mapping[str, Any]:
    """Field -> value; read past Linen, which binds a part to its owner when it is first asked for."""
    try:
        return owner.__dict__
    except AttributeError:  # slots
        return {name: getattr(owner, name) for name, *_ in fields if hasattr(owner, name)}


def _problem(owner: Any, cls: type, takes: list[tuple[str, set[type], _Take]]) -> tuple[str, str] | None:
    """The first field that can't take its value, with the sentence; None if there is none."""
    values = _values(owner, takes)
    for name, exact, take in takes:
        value = values.get(name, dataclasses.MISSING)
        if type(value) in exact or value is dataclasses.MISSING:
            continue
        if type(owner) is not cls and _redeclared(type(owner), cls, name):
            continue
        try:
            taken = take(value)
        except _Refused as refused:
            return name, f"{name}{refused}"
        if taken is not value:
            object.__setattr__(owner, name, taken)
    return None


def _hold(owner: Any, ranges: list[tuple[str, Range, set]], sizes: bool = False) -> None:
    """Refuses a number that is out of its field's range, or only one beyond all measure."""
    values = _values(owner, ranges)
    for name, allowed, known in ranges:
        value = values.get(name)
        kind = type(value)
        if value is None or ((kind is int or kind is float) and value in known):
            continue
        if sizes and allowed.at_most != LARGEST:
            continue
        _hold_one(name, value, Range(at_most=LARGEST) if sizes else allowed)
        if not sizes and (kind is int or kind is float) and len(known) < _KNOWN:
            known.add(value)


def _hold_one(name: str, value: Any, allowed: Range) -> None:
    for number in _numbers(value):
        if isinstance(number, int | float) and not isinstance(number, bool) and number not in allowed:
            shown = f"{value}, with {number} in it" if isinstance(value, tuple) else value
            large = allowed.at_most == LARGEST and number > LARGEST
            raise UsageError(f"{name} is {shown}; expected {f'at most {allowed.at_most}' if large else allowed}")


def _numbers(value: Any) -> list:
    """A value, or every entry of a tuple and of the tuples in it."""
    return [number for entry in value for number in _numbers(entry)] if isinstance(value, tuple) else [value]


def _redeclared(cls: type, base: type, name: str) -> bool:
    """True if a class between the two says anew what the field takes."""
    between = cls.__mro__[: cls.__mro__.index(base)]
    return any(name in vars(one).get("__annotations__", {}) for one in between)


# -- what annotations take ---------------------------------------------------------------------------------------------


def _take(annotation: Any, declared: bool, exact: set[type]) -> _Take | None:
    """The taker of an annotation's values; None if it says nothing that is checked.

    Args:
      annotation: of a field, or of a part of it.
      declared: as for `held`.
      exact: filled with the types whose values are taken as they are, now or when the first of them comes.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        kind = next((one.name for one in annotation.__metadata__ if isinstance(one, Kind)), None)
        if kind == "dtype":
            return functools.partial(_dtype, exact)
        if kind is not None:
            return functools.partial(_component, exact, kind, declared)
        return _take(arguments[0], declared and not any(isinstance(x, Range) for x in annotation.__metadata__), exact)
    if origin in (typing.Union, types.UnionType):
        options = [(one, _take(one, declared, exact)) for one in arguments]
        # In a file of one's own None alone says nothing, and what is beside something unknown may be anything.
        return None if any(take is None for _, take in options) else functools.partial(_union, _ordered(options))
    if origin is typing.Literal:
        return functools.partial(_literal, arguments)
    if annotation in (None, types.NoneType):
        exact.add(types.NoneType)
        return _none
    if origin is tuple or (annotation is tuple and not declared):
        return _tuple_take(arguments, declared)
    if declared or not isinstance(annotation, type):
        return None
    if annotation in _SCALARS:
        exact |= {float, int} if annotation is float else {annotation}
        return functools.partial(_scalar, annotation)
    return functools.partial(_instance, exact, annotation) if dataclasses.is_dataclass(annotation) else None


def _ordered(options: list[tuple[Any, _Take]]) -> list[tuple[Any, _Take]]:
    """The narrower types before the wider ones, and none last, as in sentences."""
    order = {bool: 1, int: 2, float: 3, types.NoneType: 5}
    return sorted(options, key=lambda one: order.get(one[0], 4) if isinstance(one[0], type) else 4)


def _union(options: list[tuple[Any, _Take]], value: Any) -> Any:
    refusals = []
    for annotation, take in options:
        try:
            return take(value)
        except _Refused as refused:
            if isinstance(value, tuple | list) and typing.get_origin(annotation) is tuple:
                raise  # it says which of the entries
            refusals.append(refused)
    *most, last = dict.fromkeys(refused.expected for refused in refusals)
    expected = f"{', '.join(most)} or {last}" if most else last
    near = next((refused.near for refused in refusals if refused.near), "")
    raise _Refused(value, expected, refusals[0].found, near)


def _none(value: Any) -> None:
    if value is not None:
        raise _Refused(value, "none")


def _literal(choices: tuple, value: Any) -> Any:
    plain = _unboxed(value)
    for choice in choices if isinstance(plain, str | bytes | int | float | types.NoneType) else ():
        if plain == choice and isinstance(plain, bool) == isinstance(choice, bool):
            return value if type(value) is type(choice) else choice
    raise _Refused(value, one_of(choices), near=near_choice(value, choices))


def _scalar(kind: type, value: Any) -> Any:
    plain = _unboxed(value)
    flag = isinstance(plain, bool)
    if isinstance(plain, int if kind is bool else (float, int) if kind is float else kind) and flag == (kind is bool):
        return plain
    if kind is int and isinstance(plain, float) and plain.is_integer():
        return int(plain)
    if hasattr(type(value), "__array__") and not isinstance(value, np.generic):  # an array, perhaps a traced one
        return value
    raise _Refused(value, _SCALARS[kind])


def _unboxed(value: Any) -> Any:
    """A Python number, truth value or text for numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def _tuple_take(arguments: tuple, declared: bool) -> _Take | None:
    """For tuples of any length or of one; None if its entries say nothing that is checked."""
    several = len(arguments) == 2 and arguments[1] is Ellipsis
    parts = []
    for annotation in arguments[:1] if several else arguments:
        exact: set[type] = set()
        parts.append((exact, _take(annotation, declared, exact)))
    if declared and all(take is None for _, take in parts):
        return None
    numbers = bool(arguments) and range_of(tuple[arguments]) is not None
    return functools.partial(_tuple, parts, several or not arguments, numbers)


def _tuple(parts: list[tuple[set[type], _Take | None]], several: bool, numbers: bool, value: Any) -> Any:
    if not isinstance(value, tuple | list):
        count = "" if several else f" of {len(parts)}"
        example = f" of numbers, such as ({value},)" if numbers and several and type(value) in (int, float) else count
        raise _Refused(value, f"a tuple{example}")
    if not several and len(value) != len(parts):
        raise _Refused(value, f"{len(parts)}", found=f"has {len(value)} entries")
    taken = []
    for number, entry in enumerate(value):
        exact, take = (parts[0] if several and parts else parts[number]) if parts else ((), None)
        try:
            taken.append(entry if take is None or type(entry) in exact else take(entry))
        except _Refused as refused:
            refused.entry = f".{number}{refused.entry}"
            raise
    same = isinstance(value, tuple) and all(one is other for one, other in zip(taken, value))
    return value if same else tuple(taken)


def _dtype(exact: set[type], value: Any) -> Any:
    if isinstance(value, str):
        if value not in FLOATS:
            raise _Refused(value, one_of(FLOATS), near=near_choice(value, FLOATS))
        import jax.numpy as jnp

        return getattr(jnp, value)
    if (type(value) in _PLAIN and value is not None) or isinstance(value, Mapping):
        raise _Refused(value, "a dtype, such as jnp.float32")
    exact.add(type(value))
    return value


def _component(exact: set[type], kind: str, declared: bool, value: Any) -> Any:
    if value is None and declared:
        return value
    valid = {name: cls for name, (cls, of) in COMPONENTS.items() if of == kind}
    return _part(exact, value, valid, f"kind {kind!r}", _MADE.get(kind))


def _instance(exact: set[type], cls: type, value: Any) -> Any:
    if isinstance(value, cls):
        exact.add(type(value))
        return value
    return _part(exact, value, {NAMES.get(cls, cls.__name__): cls}, cls.__name__, None)


def _part(exact: set[type], value: Any, valid: Mapping[str, type], what: str, made: str | None) -> Any:
    """A component: one of the valid ones, or an object of one's own; not what can't be a component at all."""
    what = f"an instance of {what}"
    if isinstance(value, type) and (dataclasses.is_dataclass(value) or value in NAMES):
        raise _Refused(value, what, f"is the class {value.__name__}", _example(NAMES.get(value), valid, None))
    if type(value) in _PLAIN or isinstance(value, Mapping):
        name = value.get("module") if isinstance(value, Mapping) else value
        reason = ": names stand for instances only in JSON and on the command line"
        example = _example(name, valid, made)
        raise _Refused(value, what, near=example + reason * isinstance(value, str | Mapping))
    name = NAMES.get(type(value))
    own = type(value).__module__.partition(".")[0] == __name__.partition(".")[0]
    if name is not None and own and name not in valid:
        raise _Refused(value, what, f"is the {COMPONENTS[name][1]} {name!r}", _example(None, valid, None))
    if not isinstance(value, type):
        exact.add(type(value))
    return value


def _example(name: Any, valid: Mapping[str, type], made: str | None) -> str:
    """The component that was meant, as it is written, or else one of the valid ones."""
    if isinstance(name, str) and name not in valid and made is not None:
        return f", such as {made.format(name)}"
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5) if isinstance(name, str) else []
    names = [*near, *valid]
    return f", such as {_call(valid[names[0]])}" if names else ""


def _call(cls: type) -> str:
    required = any(
        field.init and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(cls)
        if field.name not in ("parent", "name")
    )
    return f"{cls.__name__}({'...' if required else ''})"


def _shown(value: Any, most: int = 60) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}(...)"  # a module is pages
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
