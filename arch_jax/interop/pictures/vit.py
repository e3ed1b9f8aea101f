"""The Vision Transformer: `model_type` "vit", timm's vit_tiny_patch16_224 and torchvision's vit_b_16 and their kin."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn

from arch_jax.interop.configuration_fields import (
    ACTIVATIONS,
    Field,
    choice,
    flag,
    label_names,
    labels,
    number,
    only,
    read_fields,
    whole,
)
from arch_jax.interop.model_types.model_type import divides
from arch_jax.interop.pictures.picture_type import CONVOLUTION, LINEAR, PictureType, Released, Row, layer_norm, linear
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.models.transformer.vit import ViT

FIELDS = {
    "hidden_size": Field(whole, 768),
    "num_hidden_layers": Field(whole, 12),
    "num_attention_heads": Field(whole, 12),
    "intermediate_size": Field(whole, 3072),
    "hidden_act": Field(choice(ACTIVATIONS), "gelu"),
    "initializer_range": Field(number, 0.02),
    "layer_norm_eps": Field(number, 1e-12),
    "image_size": Field(whole, 224),
    "patch_size": Field(whole, 16),
    "num_channels": Field(only(3), 3),
    "qkv_bias": Field(flag, True),
}
_HARMLESS = [
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "encoder_stride",  # of the decoder for masked pictures
    "pooler_output_size",  # of a pooler that the classifier has not
    "pooler_act",
]


def _read(data: Mapping[str, Any]) -> ViT:
    c = read_fields(data, FIELDS, _HARMLESS)
    divides("num_attention_heads", c["num_attention_heads"], "hidden_size", c["hidden_size"])
    std = c["initializer_range"]
    bias = {"bias": c["qkv_bias"], "output_bias": True}
    return ViT(
        classes=labels(data),
        picture=c["image_size"],
        patch=c["patch_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=Attention(heads=c["num_attention_heads"], causal=False, initial_std=std, **bias),
        feed_forward=MLP(hidden=c["intermediate_size"], activation=c["hidden_act"], initial_std=std),
        norm=LayerNorm(epsilon=c["layer_norm_eps"]),
        initial_std=std,
    )


def _write(module: ViT) -> dict[str, Any]:
    mixer, feed_forward = module.mixer, module.feed_forward
    return {
        "architectures": ["ViTForImageClassification"],
        **label_names(module.classes),
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": getattr(mixer, "heads", 1),
        "intermediate_size": getattr(feed_forward, "hidden", None) or 4 * module.width,
        "hidden_act": getattr(feed_forward, "activation", "gelu").replace("gelu_tanh", "gelu_new"),
        "hidden_dropout_prob": module.dropout,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": module.initial_std,
        "layer_norm_eps": getattr(module.norm, "epsilon", 1e-12),
        "image_size": module.picture,
        "patch_size": module.patch,
        "num_channels": 3,
        "qkv_bias": getattr(mixer, "bias", True),
    }


def plain_layer(mixer: nn.Module, feed_forward: nn.Module, width: int) -> tuple[nn.Module, nn.Module]:
    """The two parts of a layer with the sizes that follow from others written out."""
    if isinstance(mixer, Attention):
        _, kv_heads, size = mixer.sizes(width)
        bias = mixer.bias if mixer.output_bias is None else mixer.output_bias
        mixer = mixer.clone(kv_heads=kv_heads, head_size=size, output_bias=bias)
    if isinstance(feed_forward, MLP) and feed_forward.hidden is None:
        feed_forward = feed_forward.clone(hidden=4 * width)
    return mixer, feed_forward


def _plain(module: ViT) -> ViT:
    """Sizes that follow from others, written out."""
    mixer, feed_forward = plain_layer(module.mixer, module.feed_forward, module.width)
    return module.clone(mixer=mixer, feed_forward=feed_forward)


def _ends(module: ViT, token: str, position: str, patch: str) -> list[Row]:
    return [
        Row(token, ("params/class_token",), ones=2),
        Row(position, ("params/position_embedding",), ones=1),
        Row(f"{patch}.weight", ("params/patch_embedding/kernel",), CONVOLUTION, patch=module.patch),
        Row(f"{patch}.bias", ("params/patch_embedding/bias",)),
    ]


def layer_rows(theirs: str, ours: str, bias: bool, depth: int) -> list[Row]:
    """The rows of `depth` layers under transformers' names; `bias` is whether queries, keys and values have one."""
    rows = []
    for part in ("query", "key", "value"):
        rows += linear(f"{theirs}.attention.attention.{part}", f"{ours}/mixer/{part}", bias=bias, layers=depth)
    rows += linear(f"{theirs}.attention.output.dense", f"{ours}/mixer/output", layers=depth)
    rows += linear(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/up", layers=depth)
    rows += linear(f"{theirs}.output.dense", f"{ours}/feed_forward/down", layers=depth)
    rows += layer_norm(f"{theirs}.layernorm_before", f"{ours}/mixer_norm", depth)
    return rows + layer_norm(f"{theirs}.layernorm_after", f"{ours}/feed_forward_norm", depth)


def _transformers(module: ViT) -> list[Row]:
    rows = _ends(
        module,
        "vit.embeddings.cls_token",
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection",
    )
    rows += layer_rows("vit.encoder.layer.{}", "stack/layers/block_0", module.mixer.bias, module.depth)
    return rows + layer_norm("vit.layernorm", "final_norm") + linear("classifier", "logits")


def _timm(module: ViT) -> list[Row]:
    theirs, ours, depth = "blocks.{}", "stack/layers/block_0", module.depth
    rows = _ends(module, "cls_token", "pos_embed", "patch_embed.proj")
    parts = [f"{ours}/mixer/{part}" for part in ("query", "key", "value")]
    rows += linear(f"{theirs}.attn.qkv", *parts, bias=module.mixer.bias, layers=depth)
    rows += linear(f"{theirs}.attn.proj", f"{ours}/mixer/output", layers=depth)
    rows += linear(f"{theirs}.mlp.fc1", f"{ours}/feed_forward/up", layers=depth)
    rows += linear(f"{theirs}.mlp.fc2", f"{ours}/feed_forward/down", layers=depth)
    rows += layer_norm(f"{theirs}.norm1", f"{ours}/mixer_norm", depth)
    rows += layer_norm(f"{theirs}.norm2", f"{ours}/feed_forward_norm", depth)
    return rows + layer_norm("norm", "final_norm") + linear("head", "logits")


def _torchvision(module: ViT) -> list[Row]:
    theirs, ours, depth = "encoder.layers.encoder_layer_{}", "stack/layers/block_0", module.depth
    rows = _ends(module, "class_token", "encoder.pos_embedding", "conv_proj")
    parts = tuple(f"params/{ours}/mixer/{part}" for part in ("query", "key", "value"))
    attention = f"{theirs}.self_attention"
    rows.append(Row(f"{attention}.in_proj_weight", tuple(f"{part}/kernel" for part in parts), LINEAR, layers=depth))
    rows.append(Row(f"{attention}.in_proj_bias", tuple(f"{part}/bias" for part in parts), layers=depth))
    rows += linear(f"{attention}.out_proj", f"{ours}/mixer/output", layers=depth)
    rows += linear(f"{theirs}.mlp.0", f"{ours}/feed_forward/up", layers=depth)
    rows += linear(f"{theirs}.mlp.3", f"{ours}/feed_forward/down", layers=depth)
    rows += layer_norm(f"{theirs}.ln_1", f"{ours}/mixer_norm", depth)
    rows += layer_norm(f"{theirs}.ln_2", f"{ours}/feed_forward_norm", depth)
    return rows + layer_norm("encoder.ln", "final_norm") + linear("heads.head", "logits")


def apart(rows: Callable[[Any], list[Row]]) -> Callable[[Any], list[Row]]:
    """The same rows, one of each layer where the module does not stack its layers."""

    def of(module: Any) -> list[Row]:
        if module.scan:
            return rows(module)
        each = []
        for row in rows(module):
            for layer in range(row.layers or 1):
                ours = tuple(path.replace("layers/block_0", f"layer_{layer}") for path in row.ours)
                each.append(row._replace(theirs=row.theirs.format(layer), ours=ours, layers=None))
        return each

    return of


_SIZES = {
    "tiny_patch16": "tiny-16",
    "small_patch16": "small-16",
    "base_patch16": "base-16",
    "base_patch32": "base-32",
    "large_patch16": "large-16",
    "huge_patch14": "huge-14",
}

_TORCHVISION = {"b_16": "base-16", "b_32": "base-32", "l_16": "large-16", "h_14": "huge-14"}

VIT_TYPE = PictureType(
    module=ViT,
    read=_read,
    write=_write,
    rows={"transformers": apart(_transformers), "timm": apart(_timm), "torchvision": apart(_torchvision)},
    architectures={
        **{f"vit_{theirs}_224": {"timm": Released(f"vit-{ours}")} for theirs, ours in _SIZES.items()},
        **{f"vit_{theirs}": {"torchvision": Released(f"vit-{ours}")} for theirs, ours in _TORCHVISION.items()},
    },
    picture=lambda module: (module.picture, module.picture, 3),
    plain=_plain,
)
