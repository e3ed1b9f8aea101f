"""Llama, Mistral and Ministral: one decoder, with biases, with a sliding window, or with one in some of the layers.

Which layers have a window, `layer_types` says. transformers reads it under the name "ministral" alone; published files
have it under "mistral" and "llama" too, and mean the same.
"""

import functools
import re
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
from arch_jax.interop.configuration_fields import (
    Field,
    Fields,
    because,
    choice,
    divides,
    flag,
    number,
    whole,
    whole_or_none,
)
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, linear_rows, norm_rows
from arch_jax.interop.strict_json import shown
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    DROPOUT,
    TRANSFORMERS,
    architectures,
    output_layer,
    text_fields,
    their_activation,
)
from arch_jax.interop.transformers.text.rope import ROPE_FIELDS, ROPE_REFUSES, read_rope, write_rope
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU

_SLIDING, _FULL = "sliding_attention", "full_attention"


def _layer_types(name: str, value: Any) -> tuple[bool, ...] | None:
    """For each layer, true if it has the window; None where the file does not say."""
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(item in (_SLIDING, _FULL) for item in value):
        raise UsageError(f"{name} is {shown(value)}; expected {_SLIDING!r} or {_FULL!r} for each layer")
    return tuple(item == _SLIDING for item in value)


_SHARED = {
    "vocab_size": Field(whole, 32_000),
    "hidden_size": Field(whole, 4096),
    "num_hidden_layers": Field(whole, 32),
    "num_attention_heads": Field(whole, 32),
    "head_dim": Field(whole_or_none),
    "hidden_act": Field(choice(ACTIVATION_NAMES), "silu"),
    "rms_norm_eps": Field(number, 1e-6),
    "initializer_range": Field(number, 0.02),
    "tie_word_embeddings": Field(flag, False),
    **ROPE_FIELDS,
}
_NO_EFFECT = because(DROPOUT, "attention_dropout resid_pdrop")
LLAMA_FIELDS = Fields(
    reads=_SHARED
    | {
        "intermediate_size": Field(whole, 11_008),
        "num_key_value_heads": Field(whole_or_none),
        "attention_bias": Field(flag, False),
        "mlp_bias": Field(flag, False),
        "sliding_window": Field(whole_or_none),
        "layer_types": Field(_layer_types),
    },
    no_effect=_NO_EFFECT | because("splits products in parts, with the same sums", "pretraining_tp"),
    refuses=ROPE_REFUSES,
)
MISTRAL_FIELDS = Fields(
    reads=_SHARED
    | {
        "intermediate_size": Field(whole, 14_336),
        "num_key_value_heads": Field(whole_or_none, 8),
        "max_position_embeddings": Field(whole, 4096 * 32),
        "sliding_window": Field(whole_or_none, 4096),
        "layer_types": Field(_layer_types),
    },
    no_effect=_NO_EFFECT,
    refuses=ROPE_REFUSES,
)


def _read(c: Mapping[str, Any]) -> Decoder:
    heads, kv_heads, head_size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    if head_size is None:
        divides("num_attention_heads", heads, "hidden_size", c["hidden_size"])
    if kv_heads is not None:
        divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
    size = head_size or c["hidden_size"] // heads
    if size % 2:
        raise UsageError(f"the heads have {size} dimensions, which can't be rotated in pairs; expected an even number")
    whole("num_attention_heads * head_dim", heads * size)
    windows = _windows(c)
    std = c["initializer_range"]
    head_size = None if size * heads == c["hidden_size"] else size
    bias = c.get("attention_bias", False)
    attention = functools.partial(Attention, heads, kv_heads or heads, head_size, read_rope(c), bias, initial_std=std)
    mixers = tuple(attention(window=window) for window in windows)
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=mixers[0] if len(mixers) == 1 else mixers,
        feed_forward=SwiGLU(
            hidden=c["intermediate_size"], activation=c["hidden_act"], bias=c.get("mlp_bias", False), initial_std=std
        ),
        norm=RMSNorm(epsilon=c["rms_norm_eps"]),
        tied=c["tie_word_embeddings"],
        initial_std=std,
        scale_residual=False,
    )


def _windows(c: Mapping[str, Any]) -> tuple[int | None, ...]:
    """The windows of a turn of the layers' pattern, the shortest of which the depth is a multiple."""
    depth, window, sliding = c["num_hidden_layers"], c["sliding_window"], c["layer_types"]
    if sliding is None:
        if window is not None and "attention_bias" in c:
            raise UsageError(
                f"sliding_window is {window} without layer_types, and transformers' Llama has no window; expected "
                "layer_types, sliding_window null, or model_type 'mistral'"
            )
        return (window,)
    if len(sliding) != depth:
        raise UsageError(f"layer_types has {len(sliding)} entries; expected {depth}, as num_hidden_layers says")
    if any(sliding) and window is None:
        raise UsageError(
            f"sliding_window is null and layer_types has {_SLIDING!r}; expected the window of these layers"
        )
    turn = next(n for n in range(1, depth + 1) if depth % n == 0 and sliding == sliding[:n] * (depth // n))
    return tuple(window if slides else None for slides in sliding[:turn])


def _write_llama(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    own = {"attention_bias": m["mixer"].get("bias", False), "mlp_bias": m["feed_forward"].get("bias", False)}
    return (
        {"architectures": architectures("LlamaForCausalLM", module), "pretraining_tp": 1}
        | own
        | _shared_fields(m, module)
    )


def _write_mistral(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    own = {"sliding_window": m["mixer"].get("window")}
    return {"architectures": architectures("MistralForCausalLM", module)} | own | _shared_fields(m, module)


def _write_ministral(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    windows = [getattr(mixer, "window", None) for mixer in module.mixers]
    kinds = [_FULL if windows[i % len(windows)] is None else _SLIDING for i in range(module.depth)]
    own = {"sliding_window": next(filter(None, windows), None), "layer_types": kinds}
    return {"architectures": architectures("MinistralForCausalLM", module)} | own | _shared_fields(m, module)


def _shared_fields(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    heads = m["mixer"].get("heads", 1)
    return (
        text_fields(module)
        | {
            "initializer_range": module.initial_std,
            "hidden_size": m["width"],
            "intermediate_size": m["feed_forward"].get("hidden", 1),
            "num_hidden_layers": m["depth"],
            "num_attention_heads": heads,
            "num_key_value_heads": m["mixer"].get("kv_heads", heads),
            "head_dim": m["mixer"].get("head_size", 2),
            "hidden_act": their_activation(m, "gelu_pytorch_tanh"),
            "rms_norm_eps": m["norm"].get("epsilon", 1e-6),
            "attention_dropout": 0.0,
        }
        | write_rope(m["mixer"].get("rope") or {})
    )


def _naming(module: Decoder) -> Naming:
    layer = "model.layers.{}."
    projections = ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")
    rows = (
        *norm_rows(f"{layer}input_layernorm", "mixer_norm"),
        *(row for ours, theirs in projections for row in linear_rows(f"{layer}self_attn.{theirs}", f"mixer/{ours}")),
        *norm_rows(f"{layer}post_attention_layernorm", "feed_forward_norm"),
        *linear_rows(f"{layer}mlp.gate_proj", "feed_forward/gate"),
        *linear_rows(f"{layer}mlp.up_proj", "feed_forward/up"),
        *linear_rows(f"{layer}mlp.down_proj", "feed_forward/down"),
    )
    return Naming(
        prefix="model.",
        sizes={"model.embed_tokens.weight": (module.vocabulary, module.width)},
        rows=(
            Row("model.embed_tokens.weight", ("embedding/embedding",)),
            *norm_rows("model.norm", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        stacks=(LayerRows("stack", module.depth, rows, pattern=module.turn),),
        buffers=re.compile(r"(model\.)?(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


def _check_written(data: Mapping[str, Any]) -> None:
    """Refuses heads that do not divide the width, as transformers does even where they have a size of their own."""
    divides("heads", data["num_attention_heads"], "width", data["hidden_size"])


_TYPE = {
    "library": TRANSFORMERS,
    "module": Decoder,
    "read": _read,
    "namings": {"transformers": _naming},
    "inputs": text_inputs,
    "check_written": _check_written,
    "adjusted": output_layer("lm_head.weight"),
    "unsaid": ("head",),
}
LLAMA_TYPE = CheckpointType(names=("llama",), fields=LLAMA_FIELDS, write=_write_llama, **_TYPE)
MISTRAL_TYPE = CheckpointType(names=("mistral",), fields=MISTRAL_FIELDS, write=_write_mistral, **_TYPE)
MINISTRAL_TYPE = CheckpointType(names=("ministral",), fields=MISTRAL_FIELDS, write=_write_ministral, **_TYPE)
