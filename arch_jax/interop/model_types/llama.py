"""Llama and Mistral (`model_type` "llama", "mistral"): one decoder, with biases or with a sliding window."""

import re
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import (
    ACTIVATIONS,
    Field,
    choice,
    flag,
    number,
    only,
    read_fields,
    whole,
    whole_or_none,
)
from arch_jax.interop.model_types.model_type import (
    Layers,
    ModelType,
    Names,
    Row,
    dense,
    divides,
    norm,
    their_activation,
)
from arch_jax.interop.model_types.rope import ROPE_FIELDS, read_rope, write_rope
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU

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
    **ROPE_FIELDS,
}
_LLAMA_ONLY = ("attention_bias", "mlp_bias", "pretraining_tp")
MISTRAL_FIELDS = {name: field for name, field in LLAMA_FIELDS.items() if name not in _LLAMA_ONLY} | {
    "intermediate_size": Field(whole, 14_336),
    "num_key_value_heads": Field(whole_or_none, 8),
    "max_position_embeddings": Field(whole, 4096 * 32),
    "sliding_window": Field(whole_or_none, 4096),
}


def _llama(data: Mapping[str, Any]) -> Decoder:
    return _decoder(read_fields(data, LLAMA_FIELDS, ("attention_dropout",)))


def _mistral(data: Mapping[str, Any]) -> Decoder:
    return _decoder(read_fields(data, MISTRAL_FIELDS, ("attention_dropout",)))


def _decoder(c: Mapping[str, Any]) -> Decoder:
    heads, kv_heads, head_size = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    if head_size is None:
        divides("num_attention_heads", heads, "hidden_size", c["hidden_size"])
    if kv_heads is not None:
        divides("num_key_value_heads", kv_heads, "num_attention_heads", heads)
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
        mixer=Attention(
            heads,
            kv_heads or heads,
            head_size,
            read_rope(c),
            bias=c.get("attention_bias", False),
            window=c["sliding_window"],
            initial_std=std,
        ),
        feed_forward=SwiGLU(
            hidden=c["intermediate_size"], activation=c["hidden_act"], bias=c.get("mlp_bias", False), initial_std=std
        ),
        norm=RMSNorm(epsilon=c["rms_norm_eps"]),
        tied=c["tie_word_embeddings"],
        initial_std=std,
        scale_residual=False,
    )


def _llama_configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    own = {"attention_bias": m["mixer"].get("bias", False), "mlp_bias": m["feed_forward"].get("bias", False)}
    return {"architectures": ["LlamaForCausalLM"], "pretraining_tp": 1} | own | _configuration(m, module)


def _mistral_configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    own = {"sliding_window": m["mixer"].get("window")}
    return {"architectures": ["MistralForCausalLM"]} | own | _configuration(m, module)


def _configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    heads = m["mixer"].get("heads", 1)
    return {
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
    } | write_rope(m["mixer"].get("rope") or {})


def _names(module: Decoder) -> Names:
    layer = "model.layers.{}."
    projections = ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "o_proj")
    rows = (
        *norm(f"{layer}input_layernorm", "mixer_norm"),
        *(row for ours, theirs in projections for row in dense(f"{layer}self_attn.{theirs}", f"mixer/{ours}")),
        *norm(f"{layer}post_attention_layernorm", "feed_forward_norm"),
        *(row for part in ("gate", "up", "down") for row in dense(f"{layer}mlp.{part}_proj", f"feed_forward/{part}")),
    )
    return Names(
        prefix="model.",
        embedding="model.embed_tokens.weight",
        rows=(
            Row("model.embed_tokens.weight", ("embedding/embedding",)),
            *norm("model.norm", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), transposed=True),
        ),
        stacks=(Layers("stack", module.depth, re.compile(r"(?:model\.)?layers\.([0-9]{1,9})\."), rows),),
        buffers=re.compile(r"(model\.)?(layers\.[0-9]+\.self_attn\.)?rotary_emb\.inv_freq"),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    )


LLAMA_TYPE = ModelType(Decoder, _llama, _llama_configuration, _names)
MISTRAL_TYPE = ModelType(Decoder, _mistral, _mistral_configuration, _names)
