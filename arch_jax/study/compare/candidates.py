"""The models of a comparison, parsed from the command line and fitted to a task."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from arch_jax import fields, registry
from arch_jax.errors import UsageError, nearest
from arch_jax.experiment import Experiment
from arch_jax.study.runs.study import blamed_on, shapes
from arch_jax.study.sizing import parameters


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model as requested.

    Attributes:
      label: its name in the results.
      name: of the registered model.
      changes: overrides of its fields.
    """

    label: str
    name: str
    changes: Mapping[str, Any]


def parse_model(text: str) -> Contestant:
    """Parses a model with overrides: `gpt:mixer.kv_heads=1,norm=layer_norm`.

    Commas inside brackets or quotes belong to the value.

    Raises:
      UsageError: unknown model, an override without a value, an unknown field, or a value of the wrong type.
    """
    name, colon, rest = text.partition(":")
    changes: dict[str, Any] = {}
    for item in split_outside_brackets(rest) if colon else []:
        path, separator, value = item.partition("=")
        if not separator or not path.strip():
            raise UsageError(
                f"the model {text!r} has {item.strip()!r}; expected field=value, such as {name.strip()}:depth=4"
            )
        changes[path.strip()] = value.strip()
    name = name.strip()
    with blamed_on(text):
        fields.override(registry.entry(name).build(), changes)
    return Contestant(text, name, changes)


def parse_grid(text: str) -> tuple[str, list[str]]:
    """Parses a field and the values to choose from: `learning_rate=1e-4,3e-4`.

    Raises:
      UsageError: no field, or no values.
    """
    path, separator, values = text.partition("=")
    found = [value.strip() for value in split_outside_brackets(values) if value.strip()]
    if not separator or not path.strip() or not found:
        raise UsageError(f"--tune is {text!r}; expected field=value,value..., such as learning_rate=1e-4,3e-4,1e-3")
    return path.strip(), found


def fitted(one: Contestant, experiment: Experiment, corpus: Any) -> tuple[dict[str, Any], Experiment]:
    """The fields of a model that the task determines, and the experiment with the fitted model.

    Those are the fields on which its registration's example inputs depend, such as `vocabulary` and `classes`: they
    are copied from the experiment's own model, and learned positions are as many as a data sequence is long. Dtypes are
    those of the experiment's model too. Explicit settings are kept.

    Raises:
      UsageError: the model is for another task, or can't take the data.
    """
    entry = registry.entry(one.name)
    task = fields.to_json(experiment.objective)["module"]
    if entry.objective != task:
        fits = [name for name, other in registry.models().items() if other.objective == task]
        raise UsageError(
            f"the model {one.name!r} is made for the objective {entry.objective!r}, and the experiment "
            f"{experiment.name!r} has {task!r}{nearest('', fits)}"
        )
    with blamed_on(one.label):
        module, own = fields.override(entry.build(), one.changes), experiment.model
    seen: list[str] = []
    examples = jax.eval_shape(lambda: entry.inputs.batch(_Watched(module, seen), 1, jax.random.key(0)))
    if not examples.keys() & corpus.shapes.keys():
        raise UsageError(
            f"the model {one.name!r} takes {', '.join(examples)}, and the data of the experiment {experiment.name!r} "
            f"gives {', '.join(corpus.shapes)}"
        )
    changes: dict[str, Any] = {}
    for path in dict.fromkeys([*seen, "dtype", "parameter_dtype"]):
        if any(path == asked or path.startswith(f"{asked}.") for asked in one.changes):
            continue
        value, found = field_at(own, path), field_at(module, path)
        if path.rsplit(".", 1)[-1] == "length" and hasattr(corpus, "length"):
            value = corpus.length
        if value is None or found is None or dataclasses.is_dataclass(value):
            continue
        if fields.to_json(value) != fields.to_json(found):
            changes[path] = value
    with blamed_on(one.label):
        run = dataclasses.replace(experiment, model=fields.override(module, changes))
        run.check_new()
        run.check(corpus)
        parameters(run, shapes(corpus))
    return changes, run


class _Watched:
    """Proxy of a module that records the paths of the fields that are read."""

    def __init__(self, owner: Any, seen: list[str], prefix: str = "") -> None:
        self._owner, self._seen, self._prefix = owner, seen, prefix

    @property
    def __class__(self) -> type:  # for `isinstance`
        return type(self._owner)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._owner, name)
        if isinstance(value, nn.Module):
            return _Watched(value, self._seen, f"{self._prefix}{name}.")
        self._seen.append(self._prefix + name)
        return value


def field_at(owner: Any, path: str) -> Any:
    """The field of a dotted path; None if it does not exist."""
    for name in path.split("."):
        owner = getattr(owner, name, None)
    return owner


def split_outside_brackets(text: str) -> Iterator[str]:
    """The parts between commas outside of brackets and quotes."""
    part, depth, quote = "", 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth <= 0:
            yield part
            part = ""
            continue
        part += letter
    yield part
