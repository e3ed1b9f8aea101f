"""Every numeric field of every component has a range, and what is out of it is refused with one sentence."""

import dataclasses
import math
from typing import Annotated, Any, Literal, get_args, get_origin

import flax.linen as nn
import pytest

from arch_jax import fields, registry
from arch_jax.boundary import held
from arch_jax.errors import UsageError
from arch_jax.experiment import Experiment, import_components
from arch_jax.ranges import LARGEST, Count, PartialShare, Positive, Range, Share, Signed, range_of
from arch_jax.trained import Frozen, Start

import_components()


def examples() -> dict[type, Any]:
    """An instance of each component: as a registered model has it, or by its defaults."""
    entries = {entry.architecture: entry for entry in reversed(registry.models().values())}
    found: dict[type, Any] = {}
    for entry in entries.values():
        module = entry.tiny()
        for part in (module, *(value for _, value in fields.walk(module))):
            found.setdefault(type(part), part)
    for cls in fields.components().values():
        if cls not in found and not any(map(fields.required, fields.settings(cls))):
            found[cls] = cls()
    found[Frozen], found[Start] = Frozen("runs/one"), Start("runs/one")
    model = next(iter(entries.values())).tiny()
    found[Experiment] = Experiment(model, fields.components("objective")["next_token"](), None)
    examples_of = fields.components("data")["examples"]
    return found | {examples_of: examples_of("gpt2")}


EXAMPLES = examples()
NAMES = {name: cls for name, cls in fields.components().items() if cls.__module__.startswith("arch_jax.")}
FIELDS = [
    (name, field.name)
    for name, cls in NAMES.items()
    for field in fields.settings(cls)
    if range_of(field.type) is not None
]


def test_every_component_has_an_example():
    assert set(NAMES.values()) <= set(EXAMPLES)
    assert len(FIELDS) > 500


def filled(annotation: Any, example: Any, value: float | int) -> Any:
    """The value as a field takes it: itself, or tuples of it as the example has them, or as is declared."""
    if isinstance(example, tuple) and example:
        return tuple(filled(None, one, value) for one in example)
    parts = [one for one in (annotation, *get_args(annotation)) if get_origin(one) is tuple]
    if not parts or (example is not None and not isinstance(example, tuple)):
        return value
    return (value,) * sum(one is not Ellipsis for one in get_args(parts[0]))


def test_every_number_is_held_to_its_range():
    """What is no number, and what lies just outside: refused, by name, by the field's own check or by its range."""
    wrong = []
    for name, field in FIELDS:
        example = EXAMPLES[NAMES[name]]
        annotation = next(one.type for one in fields.settings(example) if one.name == field)
        allowed, whole = range_of(annotation), "int" in str(annotation) and "float" not in str(annotation)
        outside = [] if whole else [-math.inf, math.nan] + [math.inf] * (not allowed.infinite)
        for end, step in ((allowed.at_least, -1), (allowed.at_most, 1)):
            outside += [] if end is None else [int(end + step) if whole else end + step * 0.25]
        outside += [float(end) for end in (allowed.below, allowed.above) if end is not None]
        for value in outside:
            try:
                change = {field: filled(annotation, getattr(example, field), value)}
                example.clone(**change) if isinstance(example, nn.Module) else dataclasses.replace(example, **change)
                wrong.append(f"{name}.{field} takes {value}")
            except UsageError as problem:
                if field not in str(problem) and str(value) not in str(problem):
                    wrong.append(f"{name}.{field} = {value}: {problem}")
            except Exception as problem:
                wrong.append(f"{name}.{field} = {value}: {type(problem).__name__}: {problem}")
    assert not wrong, "\n".join(wrong)


def test_ranges_of_annotations():
    default, count = Range(at_least=1, at_most=LARGEST), Range(at_least=0, at_most=LARGEST)
    assert range_of(int) == range_of(int | None) == range_of(tuple[int, ...]) == default
    assert range_of(float) == range_of(float | int) == range_of(int | float | None) == Range(at_least=0)
    assert range_of(Count) == range_of(Count | None) == range_of(tuple[Count, ...] | None) == count
    assert range_of(Signed) == Range()
    assert range_of(Annotated[float, Range(above=-1, at_most=3)]) == Range(above=-1, at_most=3)
    for other in (str, bool, str | None, Literal[1, 2], tuple[str, ...], Any, "int"):
        assert range_of(other) is None


def test_sentences():
    @held
    @dataclasses.dataclass(frozen=True)
    class Settings:
        width: int = 1
        rate: float = 0.5
        dropout: PartialShare = 0.0
        share: Share = 1.0
        divisor: Positive = 1.0
        bias: Signed | None = -3.0
        widths: tuple[int, ...] = (1, 2)
        flag: bool = False

    assert Settings(width=2, rate=0, bias=None, share=0, flag=False).rate == 0
    for change, sentence in [
        ({"width": 0}, "width is 0; expected at least 1"),
        ({"width": 2**31}, "width is 2147483648; expected at most 2147483647"),
        ({"widths": 3}, "widths is 3; expected a tuple of numbers, such as (3,)"),
        ({"rate": -0.1}, "rate is -0.1; expected at least 0"),
        ({"rate": math.inf}, "rate is inf; expected at least 0"),
        ({"dropout": 1.0}, "dropout is 1.0; expected at least 0 and less than 1"),
        ({"share": 1.5}, "share is 1.5; expected at least 0 and at most 1"),
        ({"divisor": 0.0}, "divisor is 0.0; expected more than 0"),
        ({"bias": math.nan}, "bias is nan; expected a finite number"),
        ({"widths": (4, 0, 2)}, "widths is (4, 0, 2), with 0 in it; expected at least 1"),
    ]:
        with pytest.raises(UsageError) as caught:
            Settings(**change)
        assert str(caught.value) == sentence


def test_a_person_s_own_component_has_the_ranges_that_it_declares():
    @fields.component("test_ranges_own", kind="data")
    @dataclasses.dataclass(frozen=True)
    class Own:
        offset: int = -1
        limit: float = math.inf
        share: Share = 0.5

    assert Own(offset=-3, limit=-math.inf).offset == -3
    with pytest.raises(UsageError, match=r"share is 2\.0; expected at least 0 and at most 1"):
        Own(share=2.0)


def test_a_class_s_own_sentence_comes_first():
    @held
    @dataclasses.dataclass(frozen=True)
    class Own:
        parts: int = 1
        whole: int = 4

        def __post_init__(self) -> None:
            if self.whole % self.parts:
                raise UsageError("parts don't divide the whole")

    with pytest.raises(UsageError, match="don't divide"):
        Own(parts=3)
    with pytest.raises(UsageError, match="parts is 0; expected at least 1"):  # its own check divides by it
        Own(parts=0)
