"""A checkpoint's own facts in the config.json that is written: its context length, special tokens, names of classes.

The module counts: a field is written as the checkpoint had it unless the module says otherwise by now. What is written
is read once more, and where it does not say the same module, the checkpoint's fields that say what the module is give
way to those that the type writes.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType
from arch_jax.interop.configuration_fields import Fields
from arch_jax.layers.facts import CheckpointFacts

#: Fields that are not kept: the dtype is that of the tensors that are written, and no code is written.
DROPPED = ("dtype", "torch_dtype", "auto_map")
_LABELS = ("id2label", "label2id", "num_labels")

#: Type and module -> the fields that the type writes for it.
Write = Callable[[CheckpointType, Any], dict[str, Any]]


def facts_of(kind: CheckpointType, configuration: Mapping[str, Any], generation: Any = None) -> CheckpointFacts:
    """The facts in the settings files of a checkpoint.

    Args:
      kind: its type.
      configuration: the content of config.json.
      generation: the content of generation_config.json; None where there is none.
    """
    texts = [None if data is None else json.dumps(data) for data in (configuration, generation)]
    return CheckpointFacts(kind.library.name, kind.name, *texts)


def with_facts(
    kind: CheckpointType,
    module: nn.Module,
    written: dict[str, Any],
    origin: CheckpointType | None,
    write: Write,
    same: Callable[[Mapping[str, Any]], bool],
) -> dict[str, Any]:
    """The fields of config.json: the checkpoint's own, and the type's where the module has changed since.

    Args:
      kind: the type that is written.
      module: has the facts.
      written: the fields that the type writes for it.
      origin: the type that the checkpoint had; None if it is another library's, whose facts say nothing here.
      write: gives the fields that a type writes for a module.
      same: true if a config.json says what the module is.
    """
    if origin is None:
        return written
    said = module.facts.settings
    fields = kind.fields.beside(kind.library.fields)
    loaded = origin.module_of(said)
    # Heads and such follow from the tensors: they are no change.
    loaded = loaded.clone(**{name: getattr(module, name) for name in origin.unsaid})
    then = write(origin, loaded)
    changed = {name for name in written if name not in then or then[name] != written[name]}
    if changed & {*_LABELS} or _differ(said.get("id2label"), written.get("id2label")):
        changed |= {*_LABELS}  # else some of them would keep a number that is another by now
    kept = _kept(fields, said, {fields.present(name) for name in changed}, written)
    key = {kind.library.key: kind.name} | {name: written[name] for name in ("architectures",) if name in written}
    new = {name: written[name] for name in written if name in changed}
    whole = {name: written[name] for name in written if fields.account(name) == "used"}
    without = {name: value for name, value in kept.items() if fields.account(name) != "used"}
    for found in (key | kept | new, whole | key | kept | new, written | without | new):
        found[kind.library.key] = kind.name
        if same(found):
            return found
    return written


def _kept(fields: Fields, said: Mapping[str, Any], changed: set[str], written: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's fields that the module still agrees with."""
    return {
        name: value
        for name, value in said.items()
        if name not in DROPPED
        and name not in changed
        and fields.present(name) not in changed
        and fields.follows.get(name) not in changed
        and fields.account(name) is not None
    }


def _differ(one: Any, other: Any) -> bool:
    """True if two tables of labels are of different lengths."""
    return isinstance(one, Mapping) and isinstance(other, Mapping) and len(one) != len(other)


def reads_as(kind: CheckpointType, data: Mapping[str, Any]) -> bool:
    """True if a config.json is one of the type."""
    try:
        kind.module_of(data)
    except UsageError:
        return False
    return True
