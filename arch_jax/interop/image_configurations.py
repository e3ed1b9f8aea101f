"""`config.json` of image models, transformers', timm's and diffusers', <-> our modules."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn

from arch_jax import fields, registry
from arch_jax.errors import UsageError, nearest
from arch_jax.interop.configuration_fields import whole
from arch_jax.interop.image_weights import naming_of
from arch_jax.interop.pictures import DIFFUSERS_TYPES, PICTURE_TYPES
from arch_jax.interop.pictures.picture_type import PictureType
from arch_jax.interop.strict_json import shown

#: Settings of ours that change nothing in the outputs of given weights.
_TRAINING = {"dropout", "dtype", "implementation", "initial_scale", "initial_std", "momentum", "parameter_dtype"}
_TRAINING |= {"query_gain", "remat", "residual_scale", "scan", "stochastic_depth", "zero_scale"}


def picture_module_of(
    data: Mapping[str, Any], names: Callable[[], Iterable[str]]
) -> tuple[PictureType, nn.Module] | None:
    """The type that a `config.json` names, and its module in float32; None where it names no image model.

    timm's has `architecture` (and `num_classes`) in place of transformers' `model_type`, diffusers' has `_class_name`.
    torchvision has no such file: one that says {"architecture": "resnet50"} is enough.

    Args:
      data: the file's content.
      names: gives the names of the checkpoint's tensors, by which libraries are told apart that have a network of one
        name with other settings.

    Raises:
      UsageError: an unknown class, architecture or field, a value of the wrong type, or one that is not supported.
    """
    if "architecture" in data and "model_type" not in data:
        return _released(data, names)
    if "_class_name" in data and "model_type" not in data:
        name = data["_class_name"]
        if not isinstance(name, str) or name not in DIFFUSERS_TYPES:
            near = nearest(str(name)[:80], DIFFUSERS_TYPES)
            raise UsageError(f"_class_name is {shown(name)}, which is not supported{near}")
        return DIFFUSERS_TYPES[name], DIFFUSERS_TYPES[name].read(data)
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in PICTURE_TYPES:
        return None
    return PICTURE_TYPES[kind], PICTURE_TYPES[kind].read(data)


def _released(data: Mapping[str, Any], names: Callable[[], Iterable[str]]) -> tuple[PictureType, nn.Module]:
    name = data["architecture"]
    known = {theirs: kind for kind in PICTURE_TYPES.values() for theirs in kind.architectures}
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"architecture is {shown(name)}, which is not supported{nearest(str(name)[:80], known)}")
    if data.get("model_args"):
        raise UsageError(f"model_args is {shown(data['model_args'])}, which is not supported; expected none")
    kind, choices = known[name], known[name].architectures[name]
    first = next(iter(choices.values()))
    # The names of tensors do not depend on what libraries have otherwise: sizes of epsilon, padding.
    naming = naming_of(kind, registry.create(first.ours), names(), choices) if len(choices) > 1 else next(iter(choices))
    module = registry.create(choices[naming].ours, **choices[naming].changes)
    plain = {name: 0.0 for name in ("dropout", "stochastic_depth") if hasattr(module, name)}
    return kind, module.clone(classes=whole("num_classes", data.get("num_classes", module.classes)), **plain)


def picture_configuration_of(module: nn.Module) -> tuple[PictureType, dict[str, Any]] | None:
    """The type that can hold `module`, and its `config.json`; None where it is no image model of these.

    Raises:
      UsageError: the library can't express the module; the setting that is in the way is named.
    """
    for name, kind in (PICTURE_TYPES | DIFFUSERS_TYPES).items():
        if kind.module is type(module):
            data = {"model_type" if kind.library == "transformers" else "_class_name": name} | kind.write(module)
            differences = list(fields.difference(*(_settings(kind.plain(each)) for each in (module, kind.read(data)))))
            # That a part is another one says more than the settings that it therefore has or lacks.
            differences.sort(key=lambda difference: not difference[0].endswith("module"))
            for path, value, expected in differences:
                raise UsageError(
                    f"{kind.library} has no model for this module, the nearest is {name!r}: {path} is {shown(value)}; "
                    f"expected {shown(expected)}"
                )
            return kind, data
    return None


def _settings(module: nn.Module) -> dict[str, Any]:
    """What determines the outputs, as JSON."""

    def kept(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: kept(value) for name, value in data.items() if name not in _TRAINING}
        return data

    return kept(fields.to_json(module))
