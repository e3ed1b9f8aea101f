"""Accounting of a `config.json`: each field is read, known to change nothing, supported with one value, or unknown.

FIELDS = Fields(
    reads={"hidden_size": Field(whole, 768)},
    no_effect=because("dropout is not taken over", "hidden_dropout_prob"),
    refuses={"position_embedding_type": ("absolute", None)},
)
FIELDS.read({"hidden_size": 512})    # {"hidden_size": 512}; an unknown field is an error
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from arch_jax.errors import UsageError, nearest, unknown
from arch_jax.interop.strict_json import shown

#: The most that a size may be: beyond it, JAX's own arithmetic on shapes would overflow.
_LARGEST = 2**31 - 1
#: The most blocks of a stage: counting up to the largest size would take hours.
_MOST_BLOCKS = 1_000
#: The most fields that a message names.
_MOST_NAMED = 8


class Field(NamedTuple):
    """A reader of a field and its default.

    Attributes:
      read: its name and value -> the value used here; raises UsageError.
      default: the value where the field is absent, as the library has it.
    """

    read: Callable[[str, Any], Any]
    default: Any = None


def whole(name: str, value: Any) -> int:
    """A size: a whole number from 1."""
    if type(value) is not int or value < 1:  # bool is an int to Python
        raise UsageError(f"{name} is {shown(value)}; expected a whole number of at least 1")
    if value > _LARGEST:
        raise UsageError(f"{name} is {shown(value)}; expected at most {_LARGEST}")
    return value


def whole_or_none(name: str, value: Any) -> int | None:
    """A size, or null for the one that follows from other fields."""
    return None if value is None else whole(name, value)


def wholes(name: str, value: Any) -> tuple[int, ...]:
    """A size for each stage: a list of at least one."""
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{name} is {shown(value)}; expected a list of whole numbers of at least 1")
    return tuple(whole(f"{name}[{place}]", item) for place, item in enumerate(value))


def counts(name: str, value: Any) -> tuple[int, ...]:
    """A number of blocks for each stage, which are unrolled."""
    for place, count in enumerate(wholes(name, value)):
        if count > _MOST_BLOCKS:
            raise UsageError(f"{name}[{place}] is {shown(count)}; expected at most {_MOST_BLOCKS}")
    return tuple(value)


def number(name: str, value: Any) -> float:
    """A number from 0 that float32 holds."""
    if type(value) not in (int, float) or not 0 <= value < 3e38:
        raise UsageError(f"{name} is {shown(value)}; expected a finite number of at least 0")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    if number(name, value) == 0:
        raise UsageError(f"{name} is {shown(value)}; expected a number above 0")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}; expected true or false")
    return value


def choice(names: Mapping[str, str]) -> Callable[[str, Any], str]:
    """One of the library's names, as ours."""

    def read(name: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise UsageError(f"{name} is {shown(value)}, which is not supported{nearest(str(value)[:80], names)}")
        return names[value]

    return read


def only(*supported: Any) -> Callable[[str, Any], Any]:
    """One of a few values, where any other changes what is computed and is not supported."""

    def read(name: str, value: Any) -> Any:
        if not any(type(value) is type(item) and value == item for item in supported):
            raise UsageError(f"{name} is {shown(value)}, which is not supported; expected {_listed(supported)}")
        return value

    return read


def _listed(values: tuple) -> str:
    return " or ".join("null" if item is None else str(item).lower() for item in values)


def unchanged(name: str, value: Any) -> Any:
    """Any value, as it is: it is checked together with other fields."""
    return value


def divides(part: str, parts: int, total: str, size: int) -> None:
    """Refuses sizes that can't be divided equally.

    Raises:
      UsageError: `parts` does not divide `size`.
    """
    if size % parts:
        raise UsageError(f"{part} is {parts}, which does not divide {total} ({size}); expected a divisor of it")


def because(reason: str, names: str) -> dict[str, str]:
    """Fields (their names in one text, between spaces) that change nothing, all for one reason."""
    return dict.fromkeys(names.split(), reason)


class Fields(NamedTuple):
    """Accounting of the fields of a config.json. Those whose names begin with "_" are notes that libraries leave.

    Attributes:
      reads: fields that determine the module.
      no_effect: fields that change nothing in the outputs -> the reason.
      refuses: fields that change the outputs -> the values with which they are supported; absent, they have one of
        these.
      aliases: other names of fields -> the name. A file that has both says the same twice.
      fallbacks: other names that count where the name itself is absent, whatever they say where it is there.
      nested: fields that hold objects, whose fields are accounted for one by one, as `outer.inner`.
      follows: fields that change nothing because they follow from another one -> that one.
    """

    reads: Mapping[str, Field] = {}
    no_effect: Mapping[str, str] = {}
    refuses: Mapping[str, tuple] = {}
    aliases: Mapping[str, str] = {}
    fallbacks: Mapping[str, str] = {}
    nested: tuple[str, ...] = ()
    follows: Mapping[str, str] = {}

    def beside(self, shared: "Fields") -> "Fields":
        """These fields and those that all models of a library share; what is said here has precedence."""
        own = {*self.reads, *self.no_effect, *self.refuses, *self.follows}
        merged = {
            part: {name: of for name, of in getattr(shared, part).items() if name not in own} | {**getattr(self, part)}
            for part in self._fields
            if part != "nested"
        }
        return Fields(**merged, nested=(*self.nested, *shared.nested))

    def present(self, name: str) -> str:
        """The name that a field has, where it is given under another one."""
        return (self.aliases | self.fallbacks).get(name, name)

    def account(self, name: str) -> str | None:
        """Use of a field: "used", "supported only as ...", or the reason why it changes nothing; None if unknown.

        Args:
          name: of the field, or another name of it.
        """
        name = self.present(name)
        if name in self.follows:
            return f"follows from {self.follows[name]}"
        if name in self.reads:
            return "used"
        if name in self.nested:
            return "looked at field by field"
        if name in self.refuses:
            return f"supported only as {_listed(self.refuses[name])}"
        return self.no_effect.get(name, "a note of the library" if name.startswith("_") else None)

    def read(self, data: Mapping[str, Any], ignore: Collection[str] = ()) -> dict[str, Any]:
        """The values of the fields in `reads`, once every field of `data` is accounted for.

        Args:
          data: content of config.json.
          ignore: unknown fields that change nothing, as a person says.

        Raises:
          UsageError: an unknown field (nearest names), a value of the wrong type, or one that is not supported; one to
            ignore that is known to determine the outputs.
        """
        for name in ignore:
            said = self.account(name)
            if said is not None and said.startswith(("used", "supported only")):
                raise UsageError(f"ignore names {name[:80]!r}, which is {said}; expected fields that are unknown here")
        flat = self._flat(data)
        data = self._renamed({name: value for name, value in flat.items() if name not in ignore})
        if others := [name for name in data if self.account(name) is None]:
            raise self._unknown(others)
        for name, supported in self.refuses.items():
            if name in data:
                only(*supported)(name, data[name])
        return {name: field.read(name, data.get(name, field.default)) for name, field in self.reads.items()}

    def _unknown(self, names: list[str]) -> UsageError:
        """The error for unknown fields: the first with the nearest names, and the way round all of them."""
        known = {*self.reads, *self.no_effect, *self.refuses, *self.aliases, *self.fallbacks, *self.follows}
        problem = unknown("field of config.json", names[0][:80], known)
        way = ", ".join(repr(name[:80]) for name in names[:_MOST_NAMED]) + ("," if len(names) == 1 else "")
        return UsageError(
            f"{problem}; if what is unknown changes nothing in the outputs, load_pretrained(..., ignore=({way})) "
            "leaves it out"
        )

    def _flat(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of nested objects beside the others."""
        flat: dict[str, Any] = {}
        for name, value in data.items():
            if name not in self.nested:
                flat[name] = value
            elif isinstance(value, Mapping):
                flat |= {f"{name}.{inner}": held for inner, held in value.items()}
            elif value is not None:
                raise UsageError(f"{name} is {shown(value)}; expected an object, or null")
        return flat

    def _renamed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The same fields under one name each."""
        data = dict(data)
        for other, name in self.fallbacks.items():
            if other in data:
                data.setdefault(name, data.pop(other))
        for other, name in self.aliases.items():
            if other in data:
                value = data.pop(other)
                if name in data and data[name] != value:
                    raise UsageError(
                        f"{name} is {shown(data[name])} and {other} is {shown(value)}; expected them to agree"
                    )
                data[name] = value
        return data
