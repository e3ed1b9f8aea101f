"""GPT-2 (`model_type` "gpt2")."""

import re
from collections.abc import Mapping
from typing import Any

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
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    DROPOUT,
    TRANSFORMERS,
    architectures,
    output_layer,
    text_fields,
    their_activation,
)
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import LearnedPosition

GPT2_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 50_257),
        "n_positions": Field(whole, 1024),
        "n_embd": Field(whole, 768),
        "n_layer": Field(whole, 12),
        "n_head": Field(whole, 12),
        "n_inner": Field(whole_or_none),
        "activation_function": Field(choice(ACTIVATION_NAMES), "gelu_new"),
        "layer_norm_epsilon": Field(number, 1e-5),
        "initializer_range": Field(number, 0.02),
        "tie_word_embeddings": Field(flag, True),
        "scale_attn_weights": Field(flag, True),
        "scale_attn_by_inverse_layer_idx": Field(flag, False),
    },
    no_effect=because(DROPOUT, "attn_pdrop embd_pdrop resid_pdrop")
    | because("concerns special tokens of the vocabulary's own, of which there are none", "predict_special_tokens")
    | because("computes attention scores in float32, which ours always are", "reorder_and_upcast_attn")
    | because(
        "belongs to a head that summarises a sequence",
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj",
    ),
    refuses={"n_special": (0,)},
    follows={"n_ctx": "n_positions"},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
)


def _read(c: Mapping[str, Any]) -> Decoder:
    divides("n_head", c["n_head"], "n_embd", c["n_embd"])
    std = c["initializer_range"]
    # Sizes that are what ours would be anyway are left to us: what is loaded is then equal to `create("gpt2")`.
    hidden = None if c["n_inner"] == 4 * c["n_embd"] else c["n_inner"]
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["n_layer"],
        width=c["n_embd"],
        mixer=Attention(
            heads=c["n_head"],
            bias=True,
            scale=None if c["scale_attn_weights"] else 1.0,
            scale_by_layer=c["scale_attn_by_inverse_layer_idx"],
            initial_std=std,
        ),
        feed_forward=MLP(hidden=hidden, activation=c["activation_function"], initial_std=std),
        norm=LayerNorm(epsilon=c["layer_norm_epsilon"]),
        position=LearnedPosition(length=c["n_positions"], initial_std=std),
        tied=c["tie_word_embeddings"],
        initial_std=std,
    )


def _write(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    return text_fields(module) | {
        "architectures": architectures("GPT2LMHeadModel", module),
        "initializer_range": module.initial_std,
        "n_positions": m["position"].get("length", 1024),
        "n_embd": m["width"],
        "n_layer": m["depth"],
        "n_head": m["mixer"].get("heads", 1),
        "n_inner": m["feed_forward"].get("hidden", 1),
        "activation_function": their_activation(m, "gelu_new"),
        "layer_norm_epsilon": m["norm"].get("epsilon", 1e-5),
        "resid_pdrop": module.dropout,
        "embd_pdrop": module.dropout,
        "attn_pdrop": 0.0,
        "scale_attn_weights": m["mixer"].get("scale") is None,
        "scale_attn_by_inverse_layer_idx": m["mixer"].get("scale_by_layer", False),
        "reorder_and_upcast_attn": False,
        "add_cross_attention": False,
    }


def _naming(module: Decoder) -> Naming:
    layer = "transformer.h.{}."
    # Theirs are stored for a matrix product from the right, as ours are.
    rows = (
        *norm_rows(f"{layer}ln_1", "mixer_norm"),
        *linear_rows(f"{layer}attn.c_attn", "mixer/query", "mixer/key", "mixer/value", axes=None),
        *linear_rows(f"{layer}attn.c_proj", "mixer/output", axes=None),
        *norm_rows(f"{layer}ln_2", "feed_forward_norm"),
        *linear_rows(f"{layer}mlp.c_fc", "feed_forward/up", axes=None),
        *linear_rows(f"{layer}mlp.c_proj", "feed_forward/down", axes=None),
    )
    return Naming(
        prefix="transformer.",
        sizes={"transformer.wte.weight": (module.vocabulary, module.width)},
        rows=(
            Row("transformer.wte.weight", ("embedding/embedding",)),
            Row("transformer.wpe.weight", ("position_embedding/table/embedding",)),
            *norm_rows("transformer.ln_f", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        stacks=(LayerRows("stack", module.depth, rows),),
        buffers=re.compile(r"(transformer\.)?h\.[0-9]+\.attn\.(bias|masked_bias)"),
        copies={"lm_head.weight": "transformer.wte.weight"},
    )


GPT2_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("gpt2",),
    module=Decoder,
    fields=GPT2_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=output_layer("lm_head.weight"),
    unsaid=("head",),
)
