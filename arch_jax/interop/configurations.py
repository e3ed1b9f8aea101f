"""`config.json` <-> modules, for every checkpoint type in the folders of the libraries.

Each field is used, known to change nothing in the outputs, or refused by name. Dropout is one of the fields that change
nothing: a model is loaded with none, and `dropout=0.1` sets ours.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax import fields
from arch_jax.discovery import values_in
from arch_jax.errors import UsageError, nearest
from arch_jax.interop.checkpoint_type import CheckpointType
from arch_jax.interop.facts import reads_as, with_facts
from arch_jax.interop.row import Tensors
from arch_jax.interop.safetensors import Files
from arch_jax.interop.strict_json import shown
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import unbound
from arch_jax.layers.mixers.ssm.mamba import Mamba
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU


@functools.cache
def checkpoint_types() -> tuple[CheckpointType, ...]:
    """Every checkpoint type: each is found by lying in a file of its library's folder."""
    return tuple(values_in("arch_jax.interop", CheckpointType))


def checkpoint_type(library: str, name: str) -> CheckpointType:
    """The checkpoint type of a library that has a name: `checkpoint_type("transformers", "gpt2")`.

    Raises:
      UsageError: no such type (nearest names).
    """
    types = {name: kind for kind in checkpoint_types() if kind.library.name == library for name in kind.names}
    if name not in types:
        raise UsageError(f"{library} has no checkpoint type {shown(name)}{nearest(name, types)}")
    return types[name]


def module_of(
    data: Mapping[str, Any], opened: Callable[[Files], Tensors] | None = None, ignore: Collection[str] = ()
) -> tuple[CheckpointType, nn.Module]:
    """The checkpoint type that a `config.json` names, and its module in float32.

    Files of 2019 have no `model_type`: the type is then the one that has all their fields, where there is only one.

    Args:
      data: the file's content.
      opened: opens the checkpoint's tensors, whose names tell apart libraries that have a network of one name with
        other settings; called only where there are several. None takes the first.
      ignore: unknown fields that change nothing, as a person says.

    Raises:
      UsageError: an unsupported type, an unknown field, a value of the wrong type, or one that is not supported.
    """
    keys = dict.fromkeys(kind.library.key for kind in checkpoint_types())
    key = next((key for key in keys if key in data and "model_type" not in data), "model_type")
    types = [kind for kind in checkpoint_types() if kind.library.key == key]
    name = types[0].library.type_of(data)
    meant = [kind for kind in types if isinstance(name, str) and name in kind.names]
    if name is None and key == "model_type":
        meant = [kind for kind in types if kind.has_all(data.keys() - {*ignore})]
        if len(meant) > 1:
            suit = " or ".join(repr(kind.name) for kind in meant)
            raise UsageError(f"config.json has no {key}, and its fields suit {suit}; expected one of these names")
    if not meant:
        said = f"config.json has no {key}" if name is None else f"{key} is {shown(name)}, which is not supported"
        known = [name for kind in types for name in kind.names]
        raise UsageError(f"{said}{nearest(str('' if name is None else name)[:80], known)}")
    found = [(kind, kind.module_of(data, ignore)) for kind in meant]
    if opened is None or len(found) == 1:
        return found[0]
    tensors = opened(found[0][0].library.files)
    return max(found, key=lambda one: max(names(one[1]).shared(tensors) for names in one[0].namings.values()))


# From a module to a configuration: it is written from what the two sides share, read back, and compared with the
# module. Whatever it could not say shows as a difference, whichever field it is.

#: Settings of ours that change nothing in the outputs of given weights.
_TRAINING = {
    "facts",
    "dropout",
    "dtype",
    "implementation",
    "initial",
    "initial_scale",
    "initial_std",
    "momentum",
    "multiple",
}
_TRAINING |= {"embedding_std", "input_bias", "parameter_dtype", "query_gain", "remat", "residual_scale"}
_TRAINING |= {"scale_residual", "scan", "stochastic_depth", "zero_scale"}
#: The forms of a recurrence, and the initial values of a state space's step sizes and decays.
_TRAINING |= {"A_max", "A_min", "chunk", "form", "step_floor", "step_initial", "step_max", "step_min", "step_scale"}
#: Parts whose settings a configuration is written from.
_PARTS = ("mixer", "cross", "feed_forward", "norm", "final_norm", "position", "relative")
_PARTS += ("decoder_mixer", "decoder_feed_forward")


def configuration_of(module: nn.Module) -> tuple[CheckpointType, dict[str, Any]]:
    """The checkpoint type that can hold `module`, and its `config.json`.

    What the checkpoint said that the module was loaded from is written again, unless the module has changed since. For
    a module without such facts, ids of special tokens are null (Marian and T5 can't be without: they get those of
    their released models), and dropout is written where theirs is ours.

    Raises:
      UsageError: no type can express the module; the setting that is in the way is named.
    """
    writable = [kind for kind in checkpoint_types() if kind.write is not None]
    kinds = [kind for kind in writable if kind.module is type(module)]
    if not kinds:
        classes = sorted({kind.module.__name__ for kind in writable})
        expected = f"{', '.join(classes[:-1])} or {classes[-1]}"
        raise UsageError(f"save_pretrained was given a {type(module).__name__}; expected an {expected}")
    # Several types may hold the module: it stays what it was, if that is among them.
    kinds.sort(key=lambda kind: kind is not _origin(module, kind))
    ours = settings_of(module)
    found = []
    for kind in kinds:
        try:
            data = _written(kind, module)
            differences = _differences(kind, ours, data)
            # That a part is another one says more than the settings that it therefore has or lacks.
            differences.sort(key=lambda difference: not difference[0].endswith("module"))
        except UsageError as error:
            found.append((100, kind, str(error)))
            continue
        if not differences:
            kind.check_written(data)
            same = lambda data, of=kind: reads_as(of, data) and not _differences(of, ours, data)
            return kind, with_facts(kind, module, data, _origin(module, kind), _written, same)
        path, value, expected = differences[0]
        found.append((len(differences), kind, f"{path} is {shown(value)}; expected {shown(expected)}"))
    _, kind, problem = min(found, key=lambda item: item[0])
    raise UsageError(f"{kind.library.name} has no model for this module, the nearest is {kind.name!r}: {problem}")


def _written(kind: CheckpointType, module: Any) -> dict[str, Any]:
    """The fields that a type writes for a module."""
    ours = settings_of(module)
    flat = ours | {name: _first(ours.get(name)) for name in _PARTS}
    return {kind.library.key: kind.name} | kind.write(flat, module)


def _differences(kind: CheckpointType, ours: Mapping[str, Any], data: Mapping[str, Any]) -> list[tuple]:
    """Settings that a config.json does not say as they are, as (dotted path, ours, its)."""
    said = lambda settings: {name: value for name, value in settings.items() if name not in kind.unsaid}
    return list(fields.difference(said(ours), said(settings_of(kind.module_of(data)))))


def _origin(module: Any, kind: CheckpointType) -> CheckpointType | None:
    """The type that the module's facts are of, in the library of `kind`; None where there are none."""
    facts = module.facts
    if facts is None or facts.library != kind.library.name:
        return None
    return next((one for one in checkpoint_types() if one.library is kind.library and facts.kind in one.names), None)


def settings_of(module: Any) -> dict[str, Any]:
    """The settings that determine a module's outputs, as JSON, with the sizes that follow from others written out."""

    def kept(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: kept(value) for name, value in data.items() if name not in _TRAINING}
        return [kept(item) for item in data] if isinstance(data, list) else data

    data = kept(fields.to_json(module))
    for prefix in ("", "decoder_"):
        for name in ("mixer", "cross", "feed_forward"):
            part = getattr(module, f"{prefix}{name}", None)
            width = getattr(module, f"{prefix}width", getattr(module, "width", None))
            if isinstance(part, tuple) and len(part) == 1:
                part, data[f"{prefix}{name}"] = part[0], data[f"{prefix}{name}"][0]
            parts, written = (part, data.get(f"{prefix}{name}")) if isinstance(part, tuple) else ((part,), None)
            for one, said in zip(parts, written or [data.get(f"{prefix}{name}")]):
                if isinstance(said, dict):
                    said |= _sizes(one, width)
    if getattr(module, "decoder_depth", 1) is None:
        data["decoder_depth"] = module.decoder_layers
    for name in ("mixer", "feed_forward"):  # a decoder's part that is the encoder's, written out
        if data.get(f"decoder_{name}", name) is None:
            data[f"decoder_{name}"] = data[name]
    return data


def _first(settings: Any) -> dict[str, Any]:
    """The settings of a part; of a pattern of parts those of the first, from which reading back shows the others."""
    first = settings[0] if isinstance(settings, list) and settings else settings
    return first if isinstance(first, dict) else {}


def _sizes(part: Any, width: int) -> dict[str, Any]:
    """The sizes of a part that follow from others."""
    match part:
        case Attention():
            bias = part.bias if part.output_bias is None else part.output_bias
            return dict(zip(("heads", "kv_heads", "head_size"), part.sizes(width))) | {"output_bias": bias}
        case Mamba():
            return {"step_rank": part.rank(width)}
        case CrossAttention():
            return {"head_size": part.size(width)}
        case MLP() | SwiGLU():
            # Asked of the layer itself, so that its rule for the hidden width stands in one place.
            x = jax.ShapeDtypeStruct((1, width), jnp.float32)
            shapes = jax.eval_shape(unbound(part).init, jax.random.key(0), x)
            return {"hidden": shapes["params"]["up"]["kernel"].shape[1]}
    return {}
