"""transformers' `config.json` <-> our modules, for GPT-2 and Llama.

Every field of theirs is used, known to change nothing in the logits, or refused by name. Dropout is one of the fields
that change nothing: a model is loaded with none, and `dropout=0.1` sets ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax import fields
from arch_jax.errors import UsageError, nearest
from arch_jax.interop.configuration_fields import (
    ACTIVATIONS,
    Field,
    choice,
    flag,
    number,
    only,
    positive,
    read_fields,
    whole,
    whole_or_none,
)
from arch_jax.interop.strict_json import shown
from arch_jax.layers.attention import Attention
from arch_jax.layers.decoder import Decoder
from arch_jax.layers.feed_forward import MLP, SwiGLU
from arch_jax.layers.mixer import unbound
from arch_jax.layers.norms import LayerNorm, RMSNorm
from arch_jax.layers.positions import LearnedPosition, RoPE
from arch_jax.ops.rope_scaling import LinearScaling, Llama3Scaling

GPT2_FIELDS = {
    "vocab_size": Field(whole, 50_257),
    "n_positions": Field(whole, 1024),
    "n_embd": Field(whole, 768),
    "n_layer": Field(whole, 12),
    "n_head": Field(whole, 12),
    "n_inner": Field(whole_or_none),
    "activation_function": Field(choice(ACTIVATIONS), "gelu_new"),
    "layer_norm_epsilon": Field(number, 1e-5),
    "initializer_range": Field(number, 0.02),
    "tie_word_embeddings": Field(flag, True),
    "scale_attn_weights": Field(only(True), True),
    "scale_attn_by_inverse_layer_idx": Field(only(False), False),
}
#: `reorder_and_upcast_attn` computes scores in float32, which ours always are; `n_ctx` repeats n_positions.
_GPT2_HARMLESS = [
    "attn_pdrop",
    "embd_pdrop",
    "resid_pdrop",
    "n_ctx",
    "reorder_and_upcast_attn",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
]
_GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}

LLAMA_FIELDS = {
    "vocab_size": Field(whole, 32_000),
    "hidden_size": Field(whole, 4096),
    "intermediate_size": Field(whole, 11_008),
    "num_hidden_layers": Field(whole, 32),
    "num_attention_heads": Field(whole, 32),
    "num_key_value_heads": Field(whole_or_none),
    "head_dim": Field(whole_or_none),
    "hidden_act": Field(choice(ACTIVATIONS), "silu"),
    "rms_norm_eps": Field(number, 1e-6),
    "initializer_range": Field(number, 0.02),
    "tie_word_embeddings": Field(flag, False),
    "attention_bias": Field(flag, False),
    "mlp_bias": Field(flag, False),
    "pretraining_tp": Field(only(1, None), 1),
    "partial_rotary_factor": Field(only(1, 1.0, None)),
    "max_position_embeddings": Field(whole, 2048),
    "original_max_position_embeddings": Field(whole_or_none),
    "rope_theta": Field(lambda name, value: value),  # these three are read together
    "rope_scaling": Field(lambda name, value: value),
    "rope_parameters": Field(lambda name, value: value),
}
_ROPE_TYPES = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def _divides(part: str, parts: int, whole: str, size: int) -> None:
    if size % parts:
        raise UsageError(f"{part} is {parts}, which does not divide {whole} ({size}); expected a divisor of it")


def _gpt2(data: Mapping[str, Any]) -> Decoder:
    c = read_fields(data, GPT2_FIELDS, _GPT2_HARMLESS, _GPT2_ALIASES)
    _divides("n_head", c["n_head"], "n_embd", c["n_embd"])
    std = c["initializer_range"]
    # Sizes that are what ours would be anyway are left to us: what is loaded is then equal to `create("gpt2")`.
    hidden = None if c["n_inner"] == 4 * c["n_embd"] else c["n_inner"]
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["n_layer"],
        width=c["n_embd"],
        mixer=Attention(heads=c["n_head"], bias=True, initial_std=std),
        feed_forward=MLP(hidden=hidden, activation=c["activation_function"], initial_std=std),
        norm=LayerNorm(epsilon=c["layer_norm_epsilon"]),
        position=LearnedPosition(length=c["n_positions"], initial_std=std),
        tied=c["tie_word_embeddings"],
        initial_std=std,
    )


def _llama(data: Mapping[str, Any]) -> Decoder:
    c = read_fields(data, LLAMA_FIELDS, ("attention_dropout",))
    heads, kv_heads, head_size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    if head_size is None:
        _divides("num_attention_heads", heads, "hidden_size", c["hidden_size"])
    if kv_heads is not None:
        _divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    size = head_size or c["hidden_size"] // heads
    if size % 2:
        raise UsageError(f"the heads have {size} dimensions, which can't be rotated in pairs; expected an even number")
    whole("num_attention_heads * head_dim", heads * size)
    std = c["initializer_range"]
    head_size = None if size * heads == c["hidden_size"] else size
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=Attention(heads, kv_heads or heads, head_size, _rope(c), bias=c["attention_bias"], initial_std=std),
        feed_forward=SwiGLU(
            hidden=c["intermediate_size"], activation=c["hidden_act"], bias=c["mlp_bias"], initial_std=std
        ),
        norm=RMSNorm(epsilon=c["rms_norm_eps"]),
        tied=c["tie_word_embeddings"],
        initial_std=std,
        scale_residual=False,
    )


def _rope(c: Mapping[str, Any]) -> RoPE:
    """Rotary positions from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given = {name: c[name] for name in ("rope_parameters", "rope_scaling") if c[name] not in (None, {})}
    for name, value in given.items():
        if not isinstance(value, dict):
            raise UsageError(f"{name} is {shown(value)}; expected an object with a rope_type")
    if len(given) == 2 and given["rope_parameters"] != given["rope_scaling"]:
        raise UsageError("rope_parameters and rope_scaling differ; expected one of them")
    where = next(iter(given), "rope_parameters")
    # A name with null is as good as none.
    rope = {name: value for name, value in given.get(where, {}).items() if value is not None}
    kinds = [rope.pop(name) for name in ("rope_type", "type") if name in rope] or ["default"]
    if kinds[0] != kinds[-1]:
        raise UsageError(f"{where} has rope_type {shown(kinds[0])} and type {shown(kinds[1])}; expected them to agree")
    kind = choice({name: name for name in _ROPE_TYPES})(f"{where}.rope_type", kinds[0])
    for name in rope:
        if name not in (*_ROPE_TYPES[kind], "rope_theta", "partial_rotary_factor"):
            valid = nearest(name[:80], [*_ROPE_TYPES[kind], "rope_theta"])
            raise UsageError(f"{where}.{name[:80]} is not supported with rope_type {kind!r}{valid}")
    thetas = [value for value in (rope.get("rope_theta"), c["rope_theta"]) if value is not None] or [10_000.0]
    if thetas[0] != thetas[-1]:
        raise UsageError(f"rope_theta is {shown(thetas[1])}, and in {where} {shown(thetas[0])}; expected them to agree")
    only(1, 1.0)(f"{where}.partial_rotary_factor", rope.get("partial_rotary_factor", 1))
    theta = positive("rope_theta", thetas[0])
    if kind == "llama3":
        original = rope.get("original_max_position_embeddings")
        outside = c["original_max_position_embeddings"]
        rope["original_max_position_embeddings"] = outside or original or c["max_position_embeddings"]
    for name in _ROPE_TYPES[kind]:
        if name not in rope:
            raise UsageError(f"{where}.{name} is missing; rope_type {kind!r} needs it")
        rope[name] = (whole if name.startswith("original") else positive)(f"{where}.{name}", rope[name])
    types = {"default": lambda: None, "linear": LinearScaling, "llama3": Llama3Scaling}
    return RoPE(theta=theta, scaling=types[kind](*(rope[name] for name in _ROPE_TYPES[kind])))


def decoder_of(data: Mapping[str, Any]) -> tuple[str, Decoder]:
    """The model type that a `config.json` names, and its module in float32.

    Raises:
      UsageError: an unsupported model type, an unknown field, a value of the wrong type, or one that is not supported.
    """
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        said = "has no model_type" if kind is None else f"has model_type {shown(kind)}, which is not supported"
        raise UsageError(f"config.json {said}{nearest(str(kind)[:80], MODEL_TYPES)}")
    return kind, MODEL_TYPES[kind].read(data)


# The other way. A configuration is written from what the two sides share, read back, and compared with the module:
# whatever it could not say shows as a difference, whichever field it is.


def _gpt2_configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_positions": m["position"].get("length", 1024),
        "n_embd": m["width"],
        "n_layer": m["depth"],
        "n_head": m["mixer"].get("heads", 1),
        "n_inner": m["feed_forward"].get("hidden", 1),
        "activation_function": _their_activation(m, "gelu_new"),
        "layer_norm_epsilon": m["norm"].get("epsilon", 1e-5),
        "resid_pdrop": module.dropout,
        "embd_pdrop": module.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }


def _llama_configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    heads = m["mixer"].get("heads", 1)
    rope = m["mixer"].get("rope") or {}
    scaling = rope.get("scaling") or {}
    parameters = {"rope_type": "default", "rope_theta": rope.get("theta", 10_000.0)}
    longest = 2048
    if scaling.get("module") == "linear_scaling":
        parameters |= {"rope_type": "linear", "factor": scaling["factor"]}
        longest = max(1, int(longest * scaling["factor"]))
    elif scaling.get("module") == "llama3_scaling":
        parameters |= {
            "rope_type": "llama3",
            "factor": scaling["factor"],
            "low_freq_factor": scaling["low_frequency_factor"],
            "high_freq_factor": scaling["high_frequency_factor"],
            "original_max_position_embeddings": scaling["original_length"],
        }
        longest = max(1, int(scaling["original_length"] * scaling["factor"]))
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": m["width"],
        "intermediate_size": m["feed_forward"].get("hidden", 1),
        "num_hidden_layers": m["depth"],
        "num_attention_heads": heads,
        "num_key_value_heads": m["mixer"].get("kv_heads", heads),
        "head_dim": m["mixer"].get("head_size", 2),
        "hidden_act": _their_activation(m, "gelu_pytorch_tanh"),
        "max_position_embeddings": longest,
        "rms_norm_eps": m["norm"].get("epsilon", 1e-6),
        "rope_parameters": parameters,
        "attention_bias": m["mixer"].get("bias", False),
        "attention_dropout": 0.0,
        "mlp_bias": m["feed_forward"].get("bias", False),
        "pretraining_tp": 1,
    }


def _their_activation(m: Mapping[str, Any], tanh_gelu: str) -> str:
    ours = m["feed_forward"].get("activation", "silu")
    return tanh_gelu if ours == "gelu_tanh" else ours


class ModelType(NamedTuple):
    """How one of transformers' model types is read and written.

    Attributes:
      read: the fields of config.json as a module.
      write: a module's settings (and the module) as fields of config.json.
    """

    read: Callable[[Mapping[str, Any]], Decoder]
    write: Callable[[Mapping[str, Any], Decoder], dict[str, Any]]


MODEL_TYPES = {"gpt2": ModelType(_gpt2, _gpt2_configuration), "llama": ModelType(_llama, _llama_configuration)}
#: Settings of ours that change nothing in the logits of given weights.
_TRAINING = {"dropout", "dtype", "implementation", "initial_std", "multiple", "parameter_dtype", "remat"}
_TRAINING |= {"residual_scale", "scale_residual", "scan"}


def configuration_of(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The model type that can hold `module`, and its `config.json`.

    Ids of special tokens belong to the tokenizer and are written as null; dropout is written where theirs is ours.

    Raises:
      UsageError: no model type can express the module; the setting that is in the way is named.
    """
    if not isinstance(module, Decoder):
        raise UsageError(f"save_pretrained was given a {type(module).__name__}; expected a Decoder, such as a GPT-2")
    ours = _settings(module)
    flat = ours | {name: ours[name] if isinstance(ours[name], dict) else {} for name in ("mixer", "norm")}
    flat |= {name: ours[name] or {} for name in ("feed_forward", "position")}
    found = []
    for kind, model_type in MODEL_TYPES.items():
        data = {
            "model_type": kind,
            "vocab_size": module.vocabulary,
            "initializer_range": module.initial_std,
            "tie_word_embeddings": module.tied,
            "dtype": fields.to_json(module.parameter_dtype),
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        } | model_type.write(flat, module)
        try:
            differences = list(fields.difference(ours, _settings(decoder_of(data)[1])))
            # That a part is another one says more than the settings that it therefore has or lacks.
            differences.sort(key=lambda difference: not difference[0].endswith("module"))
        except UsageError as error:
            found.append((100, kind, data, str(error)))
            continue
        if not differences:
            if kind == "llama" and module.width % data["num_attention_heads"]:
                _divides("heads", data["num_attention_heads"], "width", module.width)  # transformers refuses it
            return kind, data
        path, value, expected = differences[0]
        problem = f"{path} is {shown(value)}; expected {shown(expected)}"
        found.append((len(differences), kind, data, problem))
    _, kind, _, problem = min(found, key=lambda item: item[0])
    raise UsageError(f"transformers has no model for this module, the nearest is {kind!r}: {problem}")


def _settings(module: Decoder) -> dict[str, Any]:
    """What determines the logits, as JSON, with the sizes that follow from others written out."""

    def kept(data: Any) -> Any:
        if isinstance(data, dict):
            return {name: kept(value) for name, value in data.items() if name not in _TRAINING}
        return [kept(item) for item in data] if isinstance(data, list) else data

    data = kept(fields.to_json(module))
    if isinstance(data["mixer"], list) and len(data["mixer"]) == 1:
        data["mixer"] = data["mixer"][0]
    mixer = module.mixers[0]
    if isinstance(data["mixer"], dict) and isinstance(mixer, Attention):
        sizes = mixer.sizes(module.width)
        data["mixer"] |= dict(zip(("heads", "kv_heads", "head_size"), sizes))
    if isinstance(module.feed_forward, MLP | SwiGLU):
        # Asked of the layer itself, so that its rule for the hidden width stands in one place.
        x = jax.ShapeDtypeStruct((1, module.width), jnp.float32)
        shapes = jax.eval_shape(unbound(module.feed_forward).init, jax.random.key(0), x)
        data["feed_forward"]["hidden"] = shapes["params"]["up"]["kernel"].shape[1]
    return data
