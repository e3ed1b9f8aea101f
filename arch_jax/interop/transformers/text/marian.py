"""Marian (`model_type` "marian"): translation models in the form of the Transformer of 2017."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_pair_inputs
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
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, Tensors, linear_rows, norm_rows
from arch_jax.interop.transformers.library import ACTIVATION_NAMES, DROPOUT, TRANSFORMERS, text_fields, their_activation
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.encoder_decoder import EncoderDecoder
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import SinusoidalPosition
from arch_jax.ops.attention.positions import sinusoidal

MARIAN_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 58_101),
        "decoder_vocab_size": Field(whole_or_none),
        "max_position_embeddings": Field(whole, 1024),
        "d_model": Field(whole, 1024),
        "encoder_layers": Field(whole, 12),
        "encoder_ffn_dim": Field(whole, 4096),
        "encoder_attention_heads": Field(whole, 16),
        "decoder_layers": Field(whole, 12),
        "decoder_ffn_dim": Field(whole, 4096),
        "decoder_attention_heads": Field(whole, 16),
        "activation_function": Field(choice(ACTIVATION_NAMES), "gelu"),
        "init_std": Field(number, 0.02),
        "scale_embedding": Field(flag, False),
        "share_encoder_decoder_embeddings": Field(flag, True),
        "tie_word_embeddings": Field(flag, True),
    },
    no_effect=because(
        DROPOUT,
        "activation_dropout attention_dropout classif_dropout classifier_dropout decoder_layerdrop dropout "
        "encoder_layerdrop",
    )
    | because("there always is a bias; it may be 0", "add_bias_logits")
    | because("concerns learned positions, and these are sines", "extra_pos_embeddings"),
    refuses={
        "is_encoder_decoder": (True,),
        "is_decoder": (False,),
        # What early configurations say, and transformers' Marian does not do otherwise:
        "normalize_before": (False, None),
        "normalize_embedding": (False, None),
        "add_final_layer_norm": (False, None),
        "static_position_embeddings": (True, None),
        "do_blenderbot_90_layernorm": (False, None),
    },
    aliases={"hidden_size": "d_model", "num_attention_heads": "encoder_attention_heads"},
    # Early files have the default of another model type here.
    fallbacks={"num_hidden_layers": "encoder_layers"},
)
#: Sines and cosines, which transformers computes anew.
_POSITIONS = re.compile(r"(model\.)?(encoder|decoder)\.embed_positions\.weight")


def _read(c: Mapping[str, Any]) -> EncoderDecoder:
    source, target, shared = c["vocab_size"], c["decoder_vocab_size"], c["share_encoder_decoder_embeddings"]
    target = source if target is None else target
    if shared and source != target:
        raise UsageError(
            f"vocab_size is {source} and decoder_vocab_size {target}; expected them to agree, or "
            "share_encoder_decoder_embeddings false"
        )
    std = c["init_std"]
    for side in ("encoder", "decoder"):
        divides(f"{side}_attention_heads", c[f"{side}_attention_heads"], "d_model", c["d_model"])
    if c["d_model"] % 2:
        raise UsageError(f"d_model is {c['d_model']}; expected an even number, half sines and half cosines")
    heads = [c[f"{side}_attention_heads"] for side in ("encoder", "decoder")]
    mixer, decoder_mixer = (Attention(heads=n, bias=True, initial_std=std) for n in heads)
    hidden = [c[f"{side}_ffn_dim"] for side in ("encoder", "decoder")]
    form = {"activation": c["activation_function"], "initial_std": std}
    feed_forward, decoder_feed_forward = (MLP(hidden=n, **form) for n in hidden)
    return EncoderDecoder(
        vocabulary=target,
        depth=c["encoder_layers"],
        width=c["d_model"],
        mixer=mixer,
        decoder_mixer=None if decoder_mixer == mixer else decoder_mixer,
        cross=CrossAttention(heads=heads[1], bias=True, initial_std=std),
        feed_forward=feed_forward,
        decoder_feed_forward=None if decoder_feed_forward == feed_forward else decoder_feed_forward,
        norm=LayerNorm(epsilon=1e-5),
        placement="post",
        position=SinusoidalPosition(interleaved=False),
        decoder_depth=None if c["decoder_layers"] == c["encoder_layers"] else c["decoder_layers"],
        shared=shared,
        source_vocabulary=None if source == target else source,
        tied=c["tie_word_embeddings"],
        scale_embedding=c["scale_embedding"],
        logits_bias=True,
        initial_std=std,
    )


def _write(m: Mapping[str, Any], module: EncoderDecoder) -> dict[str, Any]:
    parts = {"encoder": ("mixer", "feed_forward"), "decoder": ("decoder_mixer", "decoder_feed_forward")}
    heads = {f"{side}_attention_heads": m[mixer].get("heads", 1) for side, (mixer, _) in parts.items()}
    hidden = {f"{side}_ffn_dim": m[forward].get("hidden", 1) for side, (_, forward) in parts.items()}
    return text_fields(module) | {
        "vocab_size": module.source_vocabulary or module.vocabulary,
        "architectures": ["MarianMTModel"],
        "d_model": m["width"],
        "encoder_layers": m["depth"],
        "decoder_layers": module.decoder_layers,
        **heads,
        **hidden,
        "decoder_vocab_size": module.vocabulary,
        "max_position_embeddings": 1024,
        "activation_function": their_activation(m),
        "dropout": module.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "init_std": module.initial_std,
        "scale_embedding": module.scale_embedding,
        "share_encoder_decoder_embeddings": module.shared,
        "is_encoder_decoder": True,
        # transformers' Marian cannot be built without an id for padding; opus models have it last.
        "pad_token_id": module.vocabulary - 1,
        "decoder_start_token_id": module.vocabulary - 1,
        "eos_token_id": 0,
        "forced_eos_token_id": 0,
    }


def _stack(side: str, module: EncoderDecoder) -> LayerRows:
    layer = f"model.{side}.layers.{{}}."

    def attention(theirs: str, ours: str) -> list[Row]:
        parts = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"), ("out_proj", "output"))
        rows = [row for name, part in parts for row in linear_rows(f"{layer}{theirs}.{name}", f"{ours}/{part}")]
        return [*rows, *norm_rows(f"{layer}{theirs}_layer_norm", f"{ours}_norm")]

    rows = (
        *attention("self_attn", "mixer"),
        *(attention("encoder_attn", "cross") if side == "decoder" else ()),
        *linear_rows(f"{layer}fc1", "feed_forward/up"),
        *linear_rows(f"{layer}fc2", "feed_forward/down"),
        *norm_rows(f"{layer}final_layer_norm", "feed_forward_norm"),
    )
    depth = module.decoder_layers if side == "decoder" else module.depth
    return LayerRows(side, depth, rows)


def _check_positions(name: str, table: np.ndarray, width: int) -> None:
    if table.ndim == 2 and table.shape[1] == width:
        waves = np.asarray(sinusoidal(len(table), width))
        fixed = np.concatenate([waves[:, 0::2], waves[:, 1::2]], axis=1)
        if np.allclose(table, fixed, atol=2e-3):  # as close as half precision comes
            return
    raise UsageError(f"the tensor {name!r} holds other positions than Marian's sines and cosines; expected those")


def _naming(module: EncoderDecoder) -> Naming:
    sides = ("encoder", "decoder")
    tables = [f"model.{side}.embed_tokens.weight" for side in sides]
    embedding = "model.shared.weight" if module.shared else tables[1]
    copies = {"lm_head.weight": embedding} | (dict.fromkeys(tables, embedding) if module.shared else {})
    return Naming(
        prefix="model.",
        sizes={embedding: (module.vocabulary, module.width)},
        rows=(
            Row(embedding, ("embedding/embedding",)),
            Row(tables[0], ("source_embedding/embedding",)),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
            Row("final_logits_bias", ("logits_bias",), ones=(0,)),
        ),
        stacks=tuple(_stack(side, module) for side in sides),
        buffers=_POSITIONS,
        copies=copies,
    )


def _adjusted(module: EncoderDecoder, tensors: Tensors) -> EncoderDecoder:
    """The module with a bias of the logits where the checkpoint has one (transformers takes 0); checks positions."""
    for name, tensor in tensors.items():
        if _POSITIONS.fullmatch(name):
            _check_positions(name, np.asarray(tensor), module.width)
    return module.clone(logits_bias="final_logits_bias" in tensors)


MARIAN_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("marian",),
    module=EncoderDecoder,
    fields=MARIAN_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_pair_inputs,
    adjusted=_adjusted,
    unsaid=("logits_bias",),
)
