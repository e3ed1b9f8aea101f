"""The Vision Transformer (`model_type` "vit")."""

import re
from collections.abc import Mapping
from typing import Any

from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, choice, divides, flag, number, whole
from arch_jax.interop.row import LayerRows, Naming, Row, linear_rows, norm_rows, patch_rows
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    CLASSES,
    DROPOUT,
    TRANSFORMERS,
    architectures,
    class_fields,
    classifier,
    label_count,
    their_activation,
)
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.models.transformer.vit import ViT

#: The fields that the masked autoencoder shares.
VIT_COMMON_FIELDS = Fields(
    reads={
        "hidden_size": Field(whole, 768),
        "num_hidden_layers": Field(whole, 12),
        "num_attention_heads": Field(whole, 12),
        "intermediate_size": Field(whole, 3072),
        "hidden_act": Field(choice(ACTIVATION_NAMES), "gelu"),
        "initializer_range": Field(number, 0.02),
        "layer_norm_eps": Field(number, 1e-12),
        "image_size": Field(whole, 224),
        "patch_size": Field(whole, 16),
        "qkv_bias": Field(flag, True),
    },
    no_effect=because(DROPOUT, "hidden_dropout_prob attention_probs_dropout_prob"),
)
VIT_FIELDS = Fields(
    reads=CLASSES,
    no_effect=because("belongs to the decoder for masked images", "encoder_stride")
    | because("belongs to a pooler that the classifier does not have", "pooler_output_size pooler_act"),
    refuses={"num_channels": (3,)},
).beside(VIT_COMMON_FIELDS)


def _read(c: Mapping[str, Any]) -> ViT:
    divides("num_attention_heads", c["num_attention_heads"], "hidden_size", c["hidden_size"])
    std = c["initializer_range"]
    bias = {"bias": c["qkv_bias"], "output_bias": True}
    return ViT(
        classes=label_count(c),
        resolution=c["image_size"],
        patch=c["patch_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=Attention(heads=c["num_attention_heads"], causal=False, initial_std=std, **bias),
        feed_forward=MLP(hidden=c["intermediate_size"], activation=c["hidden_act"], initial_std=std),
        norm=LayerNorm(epsilon=c["layer_norm_eps"]),
        initial_std=std,
    )


def _write(m: Mapping[str, Any], module: ViT) -> dict[str, Any]:
    return {
        "architectures": architectures("ViTForImageClassification", module),
        **class_fields(module.classes),
        **vit_configuration(m, module),
        "hidden_dropout_prob": module.dropout,
        "num_channels": 3,
    }


def vit_configuration(m: Mapping[str, Any], module: Any) -> dict[str, Any]:
    """The fields that the masked autoencoder shares."""
    return {
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": m["mixer"].get("heads", 1),
        "intermediate_size": m["feed_forward"].get("hidden", 1),
        "hidden_act": their_activation(m),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": module.initial_std,
        "layer_norm_eps": m["norm"].get("epsilon", 1e-12),
        "image_size": module.resolution,
        "patch_size": module.patch,
        "qkv_bias": m["mixer"].get("bias", True),
    }


def vit_stack(theirs: str, ours: str, depth: int) -> LayerRows:
    """A stack of `depth` layers under transformers' names."""
    rows = []
    for part in ("query", "key", "value"):
        rows += linear_rows(f"{theirs}.attention.attention.{part}", f"mixer/{part}")
    rows += linear_rows(f"{theirs}.attention.output.dense", "mixer/output")
    rows += linear_rows(f"{theirs}.intermediate.dense", "feed_forward/up")
    rows += linear_rows(f"{theirs}.output.dense", "feed_forward/down")
    rows += norm_rows(f"{theirs}.layernorm_before", "mixer_norm")
    rows += norm_rows(f"{theirs}.layernorm_after", "feed_forward_norm")
    return LayerRows(ours, depth, tuple(rows))


def _naming(module: ViT) -> Naming:
    rows = (
        Row("vit.embeddings.cls_token", ("class_token",), ones=(0, 1)),
        Row("vit.embeddings.position_embeddings", ("position_embedding",), ones=(0,)),
        *patch_rows("vit.embeddings.patch_embeddings.projection", "patch_embedding", module.patch),
        *norm_rows("vit.layernorm", "final_norm"),
        *linear_rows("classifier", "logits"),
    )
    sizes = {"vit.embeddings.cls_token": (1, 1, module.width)}
    stacks = (vit_stack("vit.encoder.layer.{}", "stack", module.depth),)
    # The pooler of a ViTModel, which the last hidden states do not need.
    pooler = re.compile(r"(vit\.)?pooler\.dense\.(weight|bias)")
    return Naming(rows, stacks, prefix="vit.", sizes=sizes, buffers=pooler)


VIT_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("vit",),
    module=ViT,
    fields=VIT_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=lambda module: image_inputs(module.resolution, module.resolution),
    adjusted=classifier("classifier"),
)
