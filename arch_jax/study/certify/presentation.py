"""Certification as a table, and samplers as they are named on the command line."""

from collections.abc import Mapping, Sequence
from typing import Any

from arch_jax import fields
from arch_jax.discovery import import_components
from arch_jax.errors import UsageError, unknown
from arch_jax.fields import components
from arch_jax.ops.diffusion.processes import ProcessBase
from arch_jax.sampling.base import Sampler
from arch_jax.sampling.diffusion.base import DiffusionSampler
from arch_jax.study.certify.certify import Case
from arch_jax.study.compare.candidates import split_outside_brackets

#: Of the table; the first five must be there on a narrow terminal.
HEADERS = (
    "sampler", "subject", "verdict", "process", "prediction", "law", "s", ">steps", ">calls", ">mean", ">deviation",
    ">expected", ">distance", ">order", "spacing",
)  # fmt: skip


def candidates(names: Sequence[str], before: Mapping[str, type]) -> list[Any]:
    """Samplers and processes to certify.

    Args:
      names: as given: NAME or NAME:FIELD=VALUE,...; none is every sampler of diffusions, or where a file has brought
        samplers or processes of its own, those.
      before: the components before a file was imported.

    Raises:
      UsageError: unknown names or fields; a sampler that is none of a diffusion.
    """
    import_components()
    kinds = {name: cls for kind in ("sampler", "process") for name, cls in components(kind).items()}
    if names:
        return [_named(text, kinds) for text in names]
    own = {name: cls for name, cls in kinds.items() if before and before.get(name) is not cls}
    if own:
        return [_made(name, cls, {}) for name, cls in own.items()]
    return [_made(name, cls, {}) for name, cls in kinds.items() if issubclass(cls, DiffusionSampler)]


def _named(text: str, kinds: dict[str, type]) -> Any:
    name, colon, rest = text.partition(":")
    known = [one for one, cls in kinds.items() if issubclass(cls, DiffusionSampler | ProcessBase)]
    if name not in kinds:
        raise unknown("sampler", name, known)
    changes = {}
    for item in split_outside_brackets(rest) if colon else []:
        path, separator, value = item.partition("=")
        if not separator or not path.strip():
            raise UsageError(f"the sampler {text!r} has {item.strip()!r}; expected field=value, such as ddim:eta=1")
        changes[path.strip()] = value.strip()
    cls = kinds[name]
    own = not cls.__module__.startswith("arch_jax.")
    if not (own or issubclass(cls, DiffusionSampler | ProcessBase)):
        raise UsageError(f"{name!r} draws from no denoiser; expected one of {', '.join(map(repr, known))}")
    return _made(name, cls, changes)


def _made(name: str, cls: type, changes: dict[str, str]) -> Any:
    missing = [field.name for field in fields.settings(cls) if fields.required(field) and field.name not in changes]
    if missing:
        raise UsageError(f"{name} needs {', '.join(missing)}; expected {name}:{missing[0]}=VALUE")
    if not issubclass(cls, Sampler | ProcessBase):
        raise UsageError(f"{name!r} is no Sampler and no process; expected a subclass of arch_jax.Sampler")
    return fields.build(cls, changes)


def lines(case: Case) -> tuple[str, ...]:
    """The cells of one line."""
    numbers = lambda values: " ".join(f"{value:.3g}" for value in values)
    expected = ""
    if case.expected_mean:
        expected = f"{numbers(case.expected_mean)}; {numbers(case.expected_std)}"
    return (
        case.sampler,
        case.subject,
        case.fault or "right",
        case.process,
        case.prediction,
        case.law,
        "" if case.subject != "moments" else f"{case.guidance:g}",
        str(case.steps or ""),
        "" if case.calls is None else str(case.calls),
        numbers(case.mean),
        numbers(case.std),
        expected,
        "" if case.distance is None else f"{case.distance:.2f}",
        "" if case.order is None else f"{case.order:.2f}",
        case.spacing,
    )
