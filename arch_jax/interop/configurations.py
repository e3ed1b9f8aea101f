"""transformers' `config.json` <-> our modules, for the model types of `model_types`.

Every field of theirs is used, known to change nothing in the outputs, or refused by name. Dropout is one of the fields
that change nothing: a model is loaded with none, and `dropout=0.1` sets ours.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax import fields
from arch_jax.errors import UsageError, nearest
from arch_jax.interop.model_types import MODEL_TYPES
from arch_jax.interop.model_types.model_type import divides
from arch_jax.interop.pictures import DIFFUSERS_TYPES, PICTURE_TYPES
from arch_jax.interop.strict_json import shown
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.mixers.contract import unbound
from arch_jax.layers.mixers.ssm.mamba import Mamba
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU


def module_of(data: Mapping[str, Any]) -> tuple[str, nn.Module]:
    """The model type that a `config.json` names, and its module in float32.

    Raises:
      UsageError: an unsupported model type, an unknown field, a value of the wrong type, or one that is not supported.
    """
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        said = "has no model_type" if kind is None else f"has model_type {shown(kind)}, which is not supported"
        raise UsageError(f"config.json {said}{nearest(str(kind or '')[:80], [*MODEL_TYPES, *PICTURE_TYPES])}")
    return kind, MODEL_TYPES[kind].read(data)


# The other way. A configuration is written from what the two sides share, read back, and compared with the module:
# whatever it could not say shows as a difference, whichever field it is.

#: Settings of ours that change nothing in the outputs of given weights.
_TRAINING = {"dropout", "dtype", "implementation", "initial_std", "multiple", "parameter_dtype", "query_gain", "remat"}
_TRAINING |= {"embedding_std", "input_bias", "residual_scale", "scale_residual", "scan"}
#: The forms of a recurrence, and where the step sizes and decays of state spaces start.
_TRAINING |= {"A_max", "A_min", "chunk", "form", "step_floor", "step_initial", "step_max", "step_min", "step_scale"}
#: Parts whose settings a configuration is written from.
_PARTS = ("mixer", "cross", "feed_forward", "norm", "position", "relative")


def configuration_of(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The model type that can hold `module`, and its `config.json`.

    Ids of special tokens belong to the tokenizer and are written as null (Marian and T5 can't be without: they get
    those of their released models); dropout is written where theirs is ours.

    Raises:
      UsageError: no model type can express the module; the setting that is in the way is named.
    """
    kinds = {kind: model_type for kind, model_type in MODEL_TYPES.items() if model_type.module is type(module)}
    if not kinds:
        supported = [*MODEL_TYPES.values(), *PICTURE_TYPES.values(), *DIFFUSERS_TYPES.values()]
        classes = sorted({model_type.module.__name__ for model_type in supported})
        expected = f"{', '.join(classes[:-1])} or {classes[-1]}"
        raise UsageError(f"save_pretrained was given a {type(module).__name__}; expected an {expected}")
    ours = _settings(module)
    flat = ours | {name: ours[name] if isinstance(ours.get(name), dict) else {} for name in _PARTS}
    found = []
    for kind, model_type in kinds.items():
        data = {
            "model_type": kind,
            "vocab_size": module.vocabulary,
            "tie_word_embeddings": getattr(module, "tied", True),
            "dtype": fields.to_json(module.parameter_dtype),
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        try:
            data |= model_type.write(flat, module)
            theirs = _settings(module_of(data)[1])
            same = lambda settings, of=model_type: {n: v for n, v in settings.items() if n not in of.told_by_tensors}
            differences = list(fields.difference(same(ours), same(theirs)))
            # That a part is another one says more than the settings that it therefore has or lacks.
            differences.sort(key=lambda difference: not difference[0].endswith("module"))
        except UsageError as error:
            found.append((100, kind, str(error)))
            continue
        if not differences:
            if kind in ("llama", "mistral") and module.width % data["num_attention_heads"]:
                divides("heads", data["num_attention_heads"], "width", module.width)  # transformers refuses it
            return kind, data
        path, value, expected = differences[0]
        found.append((len(differences), kind, f"{path} is {shown(value)}; expected {shown(expected)}"))
    _, kind, problem = min(found, key=lambda item: item[0])
    raise UsageError(f"transformers has no model for this module, the nearest is {kind!r}: {problem}")


def _settings(module: Any) -> dict[str, Any]:
    """What determines the outputs, as JSON, with the sizes that follow from others written out."""

    def kept(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: kept(value) for name, value in data.items() if name not in _TRAINING}
        return [kept(item) for item in data] if isinstance(data, list) else data

    data = kept(fields.to_json(module))
    if isinstance(data["mixer"], list) and len(data["mixer"]) == 1:
        data["mixer"] = data["mixer"][0]
    mixer = module.mixer[0] if isinstance(module.mixer, tuple) else module.mixer
    if isinstance(data["mixer"], dict) and isinstance(mixer, Attention):
        sizes = mixer.sizes(module.width)
        data["mixer"] |= dict(zip(("heads", "kv_heads", "head_size"), sizes))
        data["mixer"]["output_bias"] = mixer.bias if mixer.output_bias is None else mixer.output_bias
    if isinstance(data["mixer"], dict) and isinstance(mixer, Mamba):
        data["mixer"]["step_rank"] = mixer.rank(module.width)
    if isinstance(getattr(module, "cross", None), CrossAttention):
        data["cross"]["head_size"] = module.cross.size(module.width)
    if "decoder_depth" in data:
        data["decoder_depth"] = module.decoder_layers
    if isinstance(module.feed_forward, MLP | SwiGLU):
        # Asked of the layer itself, so that its rule for the hidden width stands in one place.
        x = jax.ShapeDtypeStruct((1, module.width), jnp.float32)
        shapes = jax.eval_shape(unbound(module.feed_forward).init, jax.random.key(0), x)
        data["feed_forward"]["hidden"] = shapes["params"]["up"]["kernel"].shape[1]
    return data
