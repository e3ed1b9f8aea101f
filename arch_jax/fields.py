"""Fields of modules and dataclasses as plain, serialisable settings.

A model, an objective, a data source and an experiment are all dataclasses (a Linen module is one too). This file turns
them into JSON and back, and applies overrides such as `model.mixer.heads=4`, with the types that the fields declare.

Small parts (mixers, norms, feed-forwards ...) are *components*: classes with a name and a kind, so that
`{"module": "attention", "heads": 4}` or just `attention` can stand for an instance where JSON or the command line is
read. Anywhere else, an instance is an instance.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arch_jax.boundary import COMPONENTS, FLOATS, NAMES, Kind, held, near_choice, one_of
from arch_jax.errors import UsageError, nearest, unknown

#: A computation or parameter dtype: `jnp.float32`, `"bfloat16"` ...; written as its name in JSON.
DType = typing.Annotated[Any, Kind("dtype")]

#: Class -> old name -> new name of its fields, for stored runs and whoever knows the old ones.
_RENAMED: dict[type, Mapping[str, str]] = {}
#: Kind -> (component, field): what text stands for that names no component of the kind.
_TEXT: dict[str, tuple[str, str]] = {}


def component(
    name: str, kind: str, text: str | None = None, renamed: Mapping[str, str] | None = None
) -> Callable[[type], type]:
    """Class decorator: gives a dataclass or Linen module its name in JSON and on the command line.

    Args:
      name: unique over all kinds, e.g. "attention".
      kind: what it can stand for, e.g. "mixer", "norm", "model", "objective", "data".
      text: the field that text stands for where it names no component of the kind: `teacher=runs/gpt-1`.
      renamed: old name -> new name of fields that were called otherwise: stored runs have the old ones.

    Its fields are held to their types (`arch_jax.boundary`) and its numbers to their ranges (`arch_jax.ranges`) from
    then on; outside the package, to the choices, components and ranges that it declares.
    """

    def register(cls: type) -> type:
        if name in COMPONENTS and COMPONENTS[name][0].__qualname__ != cls.__qualname__:
            raise UsageError(f"the component name {name!r} is already taken by {COMPONENTS[name][0].__qualname__}")
        if any(field.name == "module" for field in settings(cls)):
            raise UsageError(
                f"the component {name!r} has a field called 'module', which in JSON is the component's name; expected "
                "another, such as 'model'"
            )
        own = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
        COMPONENTS[name] = (held(cls, declared=not own), kind)
        _RENAMED[cls] = renamed or {}
        if text is not None:
            _TEXT[kind] = (name, text)
        NAMES[cls] = name
        return cls

    return register


def components(kind: str | None = None) -> dict[str, type]:
    """Name -> class of every component imported so far, of one kind or of all."""
    return {name: cls for name, (cls, of) in sorted(COMPONENTS.items()) if kind is None or of == kind}


def settings(owner: Any) -> Iterator[dataclasses.Field]:
    """The settable fields of a dataclass (instance or class); without Linen's own `parent` and `name`."""
    fields = [field for field in dataclasses.fields(owner) if field.init]
    is_module = any(field.name == "parent" for field in fields)
    return (field for field in fields if not (is_module and field.name in ("parent", "name")))


def required(field: dataclasses.Field) -> bool:
    """True if a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def meanings(cls: type) -> dict[str, str]:
    """Field name -> its meaning, read from the "Attributes:" section of the class's docstring."""
    found: dict[str, str] = {}
    inside, current = False, None
    for line in (cls.__doc__ or "").splitlines():
        text = line.strip()
        if text == "Attributes:":
            inside = True
        elif inside and (not text or text in ("Returns:", "Raises:", "Args:", "Source:")):
            inside, current = False, None
        elif inside and ": " in text and text.split(": ", 1)[0].isidentifier():
            current, meaning = text.split(": ", 1)
            found[current] = meaning
        elif inside and current:
            found[current] += " " + text
    return found


def to_json(value: Any) -> Any:
    """A dataclass, module, tuple, dtype or plain value as JSON-ready data; components carry their name as "module".

    Raises:
      UsageError: for a value that has no JSON form (a function, an array, an unnamed class).
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in NAMES:
            raise UsageError(f"{type(value).__qualname__} has no name in JSON; decorate it with @component(name, kind)")
        return {"module": NAMES[type(value)]} | {f.name: to_json(getattr(value, f.name)) for f in settings(value)}
    name = getattr(value, "__name__", None) or getattr(value, "name", None)  # a scalar type (jnp.float32) or a dtype
    if name in FLOATS:
        return name
    raise UsageError(f"{value!r} can't be written as JSON; expected a number, text, tuple, dtype or named component")


def from_json(data: Any, kind: str | None = None) -> Any:
    """The component that `to_json` described (of any kind, or of the one given)."""
    return _component(data, kind, path="")


def coerce(annotation: Any, value: Any, path: str) -> Any:
    """Converts `value` (JSON data, text from a command line, or already right) to the type of a field's annotation.

    Raises:
      UsageError: names `path`, what was expected, and what was given.
    """
    if isinstance(annotation, str):
        annotation = Any
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind = next((m.name for m in annotation.__metadata__ if isinstance(m, Kind)), None)
        if kind == "dtype":
            return _dtype(value, path)
        return _component(value, kind, path) if kind else coerce(arguments[0], value, path)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, value, path)
    if origin is typing.Literal:
        text = str(value)
        for choice in arguments:
            if value == choice or text == str(choice):
                return choice
        raise UsageError(f"{path} is {value!r}; expected {one_of(arguments)}{near_choice(value, arguments)}")
    if annotation is tuple or origin is tuple:
        return _tuple(arguments, value, path)
    if annotation in (bool, int, float, str):
        return _SCALARS[annotation](value, path)
    if annotation in (None, types.NoneType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        raise UsageError(f"{path} is {value!r}; expected none")
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return value if isinstance(value, annotation) else _component(value, None, path, annotation)
    return value


def _boolean(value: Any, path: str) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise UsageError(f"{path} is {value!r}; expected true or false")


def _integer(value: Any, path: str) -> int:
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, str):
            number = float(value)  # "2e3" and "2_000" are integers to a person
            value = int(value) if number != int(number) or "e" not in value.lower() else int(number)
        if int(value) != value:
            raise ValueError
        return int(value)
    except (ValueError, OverflowError, TypeError):
        raise UsageError(f"{path} is {value!r}; expected an integer") from None


def _number(value: Any, path: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if math.isnan(number):  # equal to nothing, not even to itself on resume
            raise ValueError
        return number
    except (ValueError, TypeError):
        raise UsageError(f"{path} is {value!r}; expected a number") from None


def _text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    raise UsageError(f"{path} is {value!r}; expected text")


_SCALARS: dict[type, Callable[[Any, str], Any]] = {bool: _boolean, int: _integer, float: _number, str: _text}


def _dtype(value: Any, path: str) -> Any:
    import jax.numpy as jnp

    if isinstance(value, str):
        if value not in FLOATS:
            raise UsageError(f"{path} is {value!r}; expected {one_of(FLOATS)}{near_choice(value, FLOATS)}")
        return getattr(jnp, value)
    return value


def _union(options: tuple, value: Any, path: str) -> Any:
    # None first (text "none" would otherwise be a string), then the narrower types before the wider ones.
    order = {types.NoneType: 0, bool: 1, int: 2, float: 3}
    problems = []
    for option in sorted(options, key=lambda o: order.get(o, 5 if o is str else 4)):
        try:
            return coerce(option, value, path)
        except UsageError as problem:
            problems.append((option, problem))
    named = [problem for option, problem in problems if option is not types.NoneType]
    if len(named) == 1:
        told, near, nearest_one = str(named[0]).partition("; the nearest")
        if "; expected " not in told:
            told, near, nearest_one = told + near + nearest_one, "", ""
        none = " or none" if len(problems) > 1 and not told.endswith("none") else ""
        raise UsageError(told + none + near + nearest_one)
    listed = isinstance(value, list | tuple) or (isinstance(value, str) and value.lstrip().startswith("["))
    if listed and (of_tuple := [p for o, p in problems if typing.get_origin(o) is tuple]):
        raise of_tuple[0]
    # The most helpful sentence is the one about a named component, where the field takes one.
    raise next((p for o, p in problems if typing.get_origin(o) is typing.Annotated), named[0])


def _tuple(arguments: tuple, value: Any, path: str) -> tuple:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = value.split(",") if "," in value else value
    if not isinstance(value, list | tuple):
        raise UsageError(f"{path} is {value!r}; expected a list such as [1, 2]")
    item = arguments[0] if arguments else Any
    if len(arguments) > 1 and arguments[1] is not Ellipsis:
        if len(value) != len(arguments):
            raise UsageError(f"{path} has {len(value)} entries; expected {len(arguments)}")
        return tuple(coerce(a, v, f"{path}.{i}") for i, (a, v) in enumerate(zip(arguments, value)))
    return tuple(coerce(item, entry, f"{path}.{i}") for i, entry in enumerate(value))


def _component(value: Any, kind: str | None, path: str, expected: type | None = None) -> Any:
    where = path or "the configuration"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if kind and type(value) in NAMES and COMPONENTS[NAMES[type(value)]][1] != kind:
            raise UsageError(f"{where} is the {COMPONENTS[NAMES[type(value)]][1]} {NAMES[type(value)]!r}; "
                             f"expected a {kind}")  # fmt: skip
        return value
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = None
        if isinstance(parsed, dict):
            value = parsed
        elif kind in _TEXT and value not in components(kind):
            of, field = _TEXT[kind]
            value = {"module": of, field: value}
        else:
            value = {"module": value}
    if not isinstance(value, Mapping):
        raise UsageError(f'{where} is {value!r}; expected a name or {{"module": name, field: value ...}}')
    data = dict(value)
    name = data.pop("module", None if expected is None else NAMES.get(expected))
    valid = {n: cls for n, cls in components(kind).items() if expected is None or issubclass(cls, expected)}
    if not isinstance(name, str) or (name not in valid and name not in components()):
        raise unknown(kind or NAMES.get(expected, "component"), str(name), valid)
    if name not in valid and kind:
        raise UsageError(f"{where} is the {COMPONENTS[name][1]} {name!r}; expected a {kind}{nearest('', valid)}")
    cls = COMPONENTS[name][0]
    if expected is not None and not issubclass(cls, expected):
        raise UsageError(f"{where} is {name!r}; expected {NAMES.get(expected, expected.__name__)!r}")
    prefix = f"{path}." if path else ""
    return build(cls, data, prefix)


def build(cls: type, values: Mapping[str, Any], prefix: str = "") -> Any:
    """An instance of a dataclass from plain values: unknown fields, missing ones and wrong types are named."""
    fields = {field.name: field for field in settings(cls)}
    _check_names(cls, values, prefix)
    values = {_current(cls, key): value for key, value in values.items()}
    for key in values:
        if key not in fields:
            raise unknown(f"field of {NAMES.get(cls, cls.__name__)}", prefix + key, [prefix + f for f in fields])
    for name, field in fields.items():
        if name not in values and required(field):
            raise UsageError(f"{prefix}{name} is missing; {NAMES.get(cls, cls.__name__)} needs it")
    return cls(**{key: coerce(fields[key].type, value, prefix + key) for key, value in values.items()})


def _check_names(cls: type, names: Any, prefix: str) -> None:
    for old, new in _RENAMED.get(cls, {}).items():
        if old in names and new in names:
            raise UsageError(f"{prefix}{new} is set twice, also by its old name {old!r}; expected {prefix}{new} alone")


def _current(cls: type, name: str) -> str:
    """The name of a field today, for its old one or itself."""
    return _RENAMED.get(cls, {}).get(name, name)


def override(owner: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of a dataclass with dotted fields replaced: `override(experiment, {"model.depth": 4})`.

    All fields of one owner change together, so that no order of them meets a combination that nobody asked for. A
    field that is set as a whole and in part is first set as a whole.

    Raises:
      UsageError: unknown field (nearest names), or a value of the wrong type (what was expected).
    """
    whole: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    _check_names(type(owner), {path.partition(".")[0] for path in changes}, prefix)
    for path, value in changes.items():
        head, dot, rest = path.partition(".")
        head = _current(type(owner), head)
        if dot:
            parts.setdefault(head, {})[rest] = value
        else:
            whole[head] = value
    if not changes:
        return owner
    if isinstance(owner, tuple):
        return _override_entries(owner, whole, parts, prefix)
    if not dataclasses.is_dataclass(owner):
        raise UsageError(f"{prefix.rstrip('.')} is {owner!r}, which has no field {next(iter(whole | parts))!r}")
    fields = {field.name: field for field in settings(owner)}
    new = {}
    for head in dict.fromkeys([*whole, *parts]):
        if head not in fields:
            raise unknown("field", prefix + head, _candidates(owner, head, prefix))
        if head in whole:
            new[head] = coerce(fields[head].type, whole[head], prefix + head)
        if head in parts:
            new[head] = override(new.get(head, getattr(owner, head)), parts[head], f"{prefix}{head}.")
    # A Linen module is cloned: `replace` would hand its `parent` on as if it were a setting.
    return owner.clone(**new) if hasattr(owner, "clone") else dataclasses.replace(owner, **new)


def _override_entries(owner: tuple, whole: Mapping[str, Any], parts: Mapping[str, Any], prefix: str) -> tuple:
    """`override` of a tuple, whose fields are its indices."""
    items = list(owner)
    for head in dict.fromkeys([*whole, *parts]):
        if not head.isdecimal() or int(head) >= len(owner):
            raise UsageError(f"{prefix}{head} does not exist; expected an index from 0 to {len(owner) - 1}")
        if head in whole:
            raise UsageError(f"{prefix}{head} can't be replaced alone; set {prefix.rstrip('.')} as a whole")
        items[int(head)] = override(items[int(head)], parts[head], f"{prefix}{head}.")
    return tuple(items)


def assignment(text: str) -> tuple[str, str]:
    """Splits `a.b=value` as given to `--set`."""
    path, separator, value = text.partition("=")
    if not separator or not path.strip():
        raise UsageError(f"--set {text!r} has no value; expected field=value, such as model.depth=4")
    return path.strip(), value.strip()


def _candidates(owner: Any, head: str, prefix: str) -> list[str]:
    """Valid names for a field that does not exist: those beside it, and deeper ones of the same or a near name."""
    names = [prefix + field.name for field in settings(owner)]
    deeper = [path for path, _ in walk(owner, prefix)]
    leaves = {path.rsplit(".", 1)[-1] for path in deeper}
    near = set(difflib.get_close_matches(head, leaves, n=2, cutoff=0.75))
    exact = [path for path in deeper if path.rsplit(".", 1)[-1] in near and path not in names]
    beside = difflib.get_close_matches(prefix + head, names, n=3, cutoff=0.6)
    return (beside + exact[:2]) or names


def walk(owner: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable leaf under a dataclass, as (dotted path, value)."""
    for field in settings(owner):
        value = getattr(owner, field.name)
        yield prefix + field.name, value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from walk(value, f"{prefix}{field.name}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if dataclasses.is_dataclass(item):
                    yield from walk(item, f"{prefix}{field.name}.{i}.")


def difference(one: Any, other: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Differences of two JSON configurations, as (dotted path, value in one, value in the other)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from difference(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (left, right) in enumerate(zip(one, other)):
            yield from difference(left, right, f"{path}.{i}")
    elif one != other:
        yield path, one, other


__all__ = [
    "DType",
    "Kind",
    "assignment",
    "build",
    "coerce",
    "component",
    "components",
    "difference",
    "from_json",
    "meanings",
    "override",
    "required",
    "settings",
    "to_json",
    "walk",
]
