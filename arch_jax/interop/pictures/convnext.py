"""ConvNeXt: `model_type` "convnext", and timm's convnext_tiny to convnext_large."""

from collections.abc import Mapping
from typing import Any

from arch_jax.interop.configuration_fields import (
    ACTIVATIONS,
    Field,
    choice,
    label_names,
    labels,
    number,
    only,
    read_fields,
    whole,
    wholes,
)
from arch_jax.interop.pictures.picture_type import PictureType, Released, Row, convolution, layer_norm, linear
from arch_jax.layers.norms import LayerNorm
from arch_jax.models.cnn.convnext import ConvNeXt

FIELDS = {
    "num_channels": Field(only(3), 3),
    "patch_size": Field(whole, 4),
    "hidden_sizes": Field(wholes, (96, 192, 384, 768)),
    "depths": Field(wholes, (3, 3, 9, 3)),
    "hidden_act": Field(choice(ACTIVATIONS), "gelu"),
    "layer_norm_eps": Field(number, 1e-12),
    "layer_scale_init_value": Field(number, 1e-6),
}
_HARMLESS = ["num_stages", "image_size", "drop_path_rate", "initializer_range", "out_features", "out_indices"]
_HARMLESS += ["stage_names"]


def _read(data: Mapping[str, Any]) -> ConvNeXt:
    c = read_fields(data, FIELDS, _HARMLESS)
    return ConvNeXt(
        classes=labels(data),
        blocks=c["depths"],
        widths=c["hidden_sizes"],
        patch=c["patch_size"],
        layer_scale=c["layer_scale_init_value"] or None,
        activation=c["hidden_act"],
        final_norm=LayerNorm(epsilon=c["layer_norm_eps"]),
    )


def _write(module: ConvNeXt) -> dict[str, Any]:
    return {
        "architectures": ["ConvNextForImageClassification"],
        **label_names(module.classes),
        "num_channels": 3,
        "patch_size": module.patch,
        "num_stages": len(module.blocks),
        "hidden_sizes": list(module.widths),
        "depths": list(module.blocks),
        "hidden_act": module.activation.replace("gelu_tanh", "gelu_new"),
        "layer_norm_eps": getattr(module.final_norm, "epsilon", 1e-12),
        "layer_scale_init_value": module.layer_scale or 0.0,
        "drop_path_rate": module.stochastic_depth,
    }


def _transformers(module: ConvNeXt) -> list[Row]:
    rows = convolution("convnext.embeddings.patch_embeddings", "stem", bias=True)
    rows += layer_norm("convnext.embeddings.layernorm", "stem_norm")
    for stage, count in enumerate(module.blocks):
        theirs = f"convnext.encoder.stages.{stage}"
        if stage:
            rows += layer_norm(f"{theirs}.downsampling_layer.0", f"halving_{stage}_norm")
            rows += convolution(f"{theirs}.downsampling_layer.1", f"halving_{stage}", bias=True)
        for place in range(count):
            names = ("layer_scale_parameter", "dwconv", "layernorm", "pwconv1", "pwconv2")
            rows += _block(module, f"{theirs}.layers.{place}", f"stage_{stage}_block_{place}", *names)
    return rows + layer_norm("convnext.layernorm", "logits_norm") + linear("classifier", "logits")


def _timm(module: ConvNeXt) -> list[Row]:
    rows = convolution("stem.0", "stem", bias=True) + layer_norm("stem.1", "stem_norm")
    for stage, count in enumerate(module.blocks):
        if stage:
            rows += layer_norm(f"stages.{stage}.downsample.0", f"halving_{stage}_norm")
            rows += convolution(f"stages.{stage}.downsample.1", f"halving_{stage}", bias=True)
        for place in range(count):
            names = ("gamma", "conv_dw", "norm", "mlp.fc1", "mlp.fc2")
            rows += _block(module, f"stages.{stage}.blocks.{place}", f"stage_{stage}_block_{place}", *names)
    return rows + layer_norm("head.norm", "logits_norm") + linear("head.fc", "logits")


def _torchvision(module: ConvNeXt) -> list[Row]:
    rows = convolution("features.0.0", "stem", bias=True) + layer_norm("features.0.1", "stem_norm")
    for stage, count in enumerate(module.blocks):
        if stage:
            rows += layer_norm(f"features.{2 * stage}.0", f"halving_{stage}_norm")
            rows += convolution(f"features.{2 * stage}.1", f"halving_{stage}", bias=True)
        for place in range(count):
            names = ("layer_scale", "block.0", "block.2", "block.3", "block.5")
            theirs = f"features.{2 * stage + 1}.{place}"
            block = _block(module, theirs, f"stage_{stage}_block_{place}", *names)
            rows += [row._replace(after=2) if row.theirs.endswith("layer_scale") else row for row in block]
    return rows + layer_norm("classifier.0", "logits_norm") + linear("classifier.2", "logits")


def _block(
    module: ConvNeXt, theirs: str, ours: str, scale: str, depthwise: str, norm: str, up: str, down: str
) -> list[Row]:
    """The rows of one block from the names of its parts."""
    rows = [] if module.layer_scale is None else [Row(f"{theirs}.{scale}", (f"params/{ours}/scale",))]
    rows += convolution(f"{theirs}.{depthwise}", f"{ours}/depthwise", bias=True)
    rows += layer_norm(f"{theirs}.{norm}", f"{ours}/norm")
    return rows + linear(f"{theirs}.{up}", f"{ours}/up") + linear(f"{theirs}.{down}", f"{ours}/down")


CONVNEXT_TYPE = PictureType(
    module=ConvNeXt,
    read=_read,
    write=_write,
    rows={"transformers": _transformers, "timm": _timm, "torchvision": _torchvision},
    architectures={
        f"convnext_{size}": dict.fromkeys(("timm", "torchvision"), Released(f"convnext-{size}"))
        for size in ("tiny", "small", "base", "large")
    },
)
