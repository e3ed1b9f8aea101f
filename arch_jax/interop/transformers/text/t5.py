"""T5 (`model_type` "t5"), v1.0 and v1.1."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.checkpoint_type import CheckpointType, text_pair_inputs
from arch_jax.interop.configuration_fields import (
    Field,
    Fields,
    because,
    choice,
    flag,
    number,
    positive,
    unchanged,
    whole,
    whole_or_none,
)
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, Tensors, linear_rows, norm_rows
from arch_jax.interop.strict_json import shown
from arch_jax.interop.transformers.library import ACTIVATION_NAMES, DROPOUT, TRANSFORMERS, text_fields
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.encoder_decoder import EncoderDecoder
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU
from arch_jax.layers.transformer.positions import RelativeBuckets


def _feed_forward(name: str, value: Any) -> tuple[bool, str]:
    """(whether it is gated, our activation) of "relu", "gated-gelu" and their like."""
    kind = value if isinstance(value, str) else ""
    gated, activation = kind.startswith("gated-"), kind.removeprefix("gated-")
    if activation not in ACTIVATION_NAMES:
        valid = [f"{prefix}{name}" for name in ACTIVATION_NAMES for prefix in ("", "gated-")]
        raise UsageError(f"{name} is {shown(value)}, which is not supported{nearest(kind[:80], valid)}")
    # "gated-gelu" of the released v1.1 checkpoints means the form by tanh.
    return gated, "gelu_tanh" if kind == "gated-gelu" else ACTIVATION_NAMES[activation]


def _flag_or_none(name: str, value: Any) -> bool | None:
    return None if value is None else flag(name, value)


T5_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 32_128),
        "d_model": Field(whole, 512),
        "d_kv": Field(whole, 64),
        "d_ff": Field(whole, 2048),
        "num_layers": Field(whole, 6),
        "num_decoder_layers": Field(whole_or_none),
        "num_heads": Field(whole, 8),
        "relative_attention_num_buckets": Field(whole, 32),
        "relative_attention_max_distance": Field(whole, 128),
        "layer_norm_epsilon": Field(number, 1e-6),
        "initializer_factor": Field(positive, 1.0),
        "feed_forward_proj": Field(_feed_forward, "relu"),
        "tie_word_embeddings": Field(flag, True),
        "scale_decoder_outputs": Field(_flag_or_none),
        "dense_act_fn": Field(unchanged),
        "is_gated_act": Field(_flag_or_none),
    },
    no_effect=because(DROPOUT, "classifier_dropout dropout_rate")
    | because("the relative positions have no bound", "n_positions")
    | because("selects what is returned", "output_past"),
    # False is what an encoder alone says; the tensors are what they are.
    refuses={"is_encoder_decoder": (True, False), "is_decoder": (False,)},
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
)


def _check_repeated(c: Mapping[str, Any], gated: bool, activation: str) -> None:
    """Refuses what repeats feed_forward_proj and says otherwise: transformers would follow it."""
    if c["is_gated_act"] not in (None, gated):
        raise UsageError(f"is_gated_act is {c['is_gated_act']}; expected {gated}, as feed_forward_proj says")
    named = c["dense_act_fn"]
    if named is not None and choice(ACTIVATION_NAMES)("dense_act_fn", named) != activation:
        raise UsageError(f"dense_act_fn is {named!r}; expected {activation!r}, as feed_forward_proj says")


def _read(c: Mapping[str, Any]) -> EncoderDecoder:
    whole("num_heads * d_kv", c["num_heads"] * c["d_kv"])
    gated, activation = c["feed_forward_proj"]
    _check_repeated(c, gated, activation)
    tied, scaled = c["tie_word_embeddings"], c["scale_decoder_outputs"]
    attention = {"heads": c["num_heads"], "head_size": c["d_kv"], "scale": 1.0, "initial_std": None}
    attention |= {"query_gain": c["d_kv"] ** -0.5}
    form = SwiGLU if gated else MLP
    buckets = {"buckets": c["relative_attention_num_buckets"], "longest": c["relative_attention_max_distance"]}
    return EncoderDecoder(
        vocabulary=c["vocab_size"],
        depth=c["num_layers"],
        width=c["d_model"],
        mixer=Attention(**attention),
        cross=CrossAttention(**attention),
        feed_forward=form(hidden=c["d_ff"], activation=activation, bias=False, initial_std=None),
        norm=RMSNorm(epsilon=c["layer_norm_epsilon"]),
        relative=RelativeBuckets(**buckets, initial_std=c["initializer_factor"] * c["d_model"] ** -0.5),
        decoder_depth=None if c["num_decoder_layers"] == c["num_layers"] else c["num_decoder_layers"],
        tied=tied,
        # Where nothing else is said, an output layer of its own means v1.1, which does not scale.
        scale_logits=tied if scaled is None else scaled,
        initial_std=c["initializer_factor"],
    )


def _write(m: Mapping[str, Any], module: EncoderDecoder) -> dict[str, Any]:
    feed_forward, relative = m["feed_forward"], m["relative"] or {}
    gated = feed_forward.get("module") == "swiglu"
    names = {"gelu_tanh": "gelu" if gated else "gelu_new"}
    activation = names.get(feed_forward.get("activation"), feed_forward.get("activation", "relu"))
    return text_fields(module) | {
        "architectures": ["T5EncoderModel" if module.encoder_only else "T5ForConditionalGeneration"],
        "d_model": m["width"],
        "d_kv": m["mixer"].get("head_size", 1),
        "d_ff": feed_forward.get("hidden", 1),
        "num_layers": m["depth"],
        "num_decoder_layers": module.decoder_layers,
        "num_heads": m["mixer"].get("heads", 1),
        "relative_attention_num_buckets": relative.get("buckets", 32),
        "relative_attention_max_distance": relative.get("longest", 128),
        "layer_norm_epsilon": m["norm"].get("epsilon", 1e-6),
        "initializer_factor": 1.0,
        "dropout_rate": module.dropout,
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        "tie_word_embeddings": module.tied,
        "scale_decoder_outputs": module.scale_logits,
        "is_encoder_decoder": not module.encoder_only,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _stack(side: str, module: EncoderDecoder) -> LayerRows:
    layer, decoder = f"{side}.block.{{}}.layer.", side == "decoder"
    last = 2 if decoder else 1

    def attention(place: int, name: str, ours: str) -> list[Row]:
        parts = (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output"))
        theirs = f"{layer}{place}.{name}"
        rows = [row for short, part in parts for row in linear_rows(f"{theirs}.{short}", f"{ours}/{part}")]
        return [*rows, *norm_rows(f"{layer}{place}.layer_norm", f"{ours}_norm")]

    form = f"{layer}{last}.DenseReluDense"
    gated = isinstance(module.feed_forward, SwiGLU)
    up = [*linear_rows(f"{form}.wi_0", "feed_forward/gate"), *linear_rows(f"{form}.wi_1", "feed_forward/up")]
    rows = [
        *attention(0, "SelfAttention", "mixer"),
        *(attention(1, "EncDecAttention", "cross") if decoder else ()),
        *(up if gated else linear_rows(f"{form}.wi", "feed_forward/up")),
        *linear_rows(f"{form}.wo", "feed_forward/down"),
        *norm_rows(f"{layer}{last}.layer_norm", "feed_forward_norm"),
    ]
    depth = module.decoder_layers if decoder else module.depth
    return LayerRows(side, depth, tuple(rows))


#: Each side's embedding, which is the shared one.
_TABLES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def _naming(module: EncoderDecoder) -> Naming:
    table = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    sides = ("encoder",) if module.encoder_only else ("encoder", "decoder")
    return Naming(
        rows=(
            Row("shared.weight", ("embedding/embedding",)),
            *(Row(table.format(side), (f"{side}_relative/embedding",)) for side in sides),
            *(row for side in sides for row in norm_rows(f"{side}.final_layer_norm", f"{side}_norm")),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        sizes={"shared.weight": (module.vocabulary, module.width)},
        stacks=tuple(_stack(side, module) for side in sides),
        # Written by early versions, and never read.
        buffers=re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"),
        copies=dict.fromkeys(("lm_head.weight", *_TABLES), "shared.weight"),
    )


def _adjusted(module: EncoderDecoder, tensors: Tensors) -> EncoderDecoder:
    """transformers 5 writes tie_word_embeddings true whatever the weights are: what they are decides."""
    said = None if module.facts is None else module.facts.settings.get("architectures")
    if said == ["T5EncoderModel"] and not any(name.startswith("decoder.") for name in tensors):
        return module.clone(encoder_only=True, tied=True)
    tables = [name for name in ("shared.weight", *_TABLES) if name in tensors]
    if "lm_head.weight" not in tensors or not tables:
        return module.clone(tied=True)
    own, shared = tensors["lm_head.weight"], tensors[tables[0]]
    same = tuple(own.shape) == tuple(shared.shape) and np.array_equal(np.asarray(own), np.asarray(shared))
    return module.clone(tied=module.tied and same)


T5_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("t5",),
    module=EncoderDecoder,
    fields=T5_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_pair_inputs,
    adjusted=_adjusted,
    unsaid=("encoder_only",),
)
