"""ConvNeXt (`model_type` "convnext")."""

from collections.abc import Mapping
from typing import Any

from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, choice, counts, number, whole, wholes
from arch_jax.interop.row import Naming, Row, blocks_of, convolution_rows, linear_rows, norm_rows
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    CLASSES,
    TRANSFORMERS,
    architectures,
    class_fields,
    classifier,
    label_count,
)
from arch_jax.layers.norms import LayerNorm
from arch_jax.models.cnn.convnext import ConvNeXt

CONVNEXT_FIELDS = Fields(
    reads=CLASSES
    | {
        "patch_size": Field(whole, 4),
        "hidden_sizes": Field(wholes, (96, 192, 384, 768)),
        "depths": Field(counts, (3, 3, 9, 3)),
        "hidden_act": Field(choice(ACTIVATION_NAMES), "gelu"),
        "layer_norm_eps": Field(number, 1e-12),
        "layer_scale_init_value": Field(number, 1e-6),
    },
    no_effect=because("images may have any size", "image_size")
    | because("stochastic depth is not taken over", "drop_path_rate")
    | because("concerns initial weights alone", "initializer_range")
    | because("selects what a backbone returns", "out_features out_indices stage_names"),
    refuses={"num_channels": (3,)},
    follows={"num_stages": "hidden_sizes"},
)


def _read(c: Mapping[str, Any]) -> ConvNeXt:
    return ConvNeXt(
        classes=label_count(c),
        blocks=c["depths"],
        widths=c["hidden_sizes"],
        patch=c["patch_size"],
        layer_scale=c["layer_scale_init_value"] or None,
        activation=c["hidden_act"],
        final_norm=LayerNorm(epsilon=c["layer_norm_eps"]),
    )


def _write(m: Mapping[str, Any], module: ConvNeXt) -> dict[str, Any]:
    return {
        "architectures": architectures("ConvNextForImageClassification", module),
        **class_fields(module.classes),
        "num_channels": 3,
        "patch_size": module.patch,
        "num_stages": len(module.blocks),
        "hidden_sizes": list(module.widths),
        "depths": list(module.blocks),
        "hidden_act": module.activation.replace("gelu_tanh", "gelu_new"),
        "layer_norm_eps": m["final_norm"].get("epsilon", 1e-12),
        "layer_scale_init_value": module.layer_scale or 0.0,
        "drop_path_rate": module.stochastic_depth,
    }


def _naming(module: ConvNeXt) -> Naming:
    start, rows = "convnext.embeddings", []
    rows += convolution_rows(f"{start}.patch_embeddings", "stem") + norm_rows(f"{start}.layernorm", "stem_norm")
    for stage in range(1, len(module.blocks)):
        theirs = f"convnext.encoder.stages.{stage}.downsampling_layer"
        rows += norm_rows(f"{theirs}.0", f"halving_{stage}_norm") + convolution_rows(f"{theirs}.1", f"halving_{stage}")
    for stage, place, ours in blocks_of(module.blocks):
        theirs = f"convnext.encoder.stages.{stage}.layers.{place}"
        rows.append(Row(f"{theirs}.layer_scale_parameter", (f"{ours}/scale",)))
        rows += convolution_rows(f"{theirs}.dwconv", f"{ours}/depthwise")
        rows += norm_rows(f"{theirs}.layernorm", f"{ours}/norm")
        rows += linear_rows(f"{theirs}.pwconv1", f"{ours}/up") + linear_rows(f"{theirs}.pwconv2", f"{ours}/down")
    return Naming(
        (*rows, *norm_rows("convnext.layernorm", "logits_norm"), *linear_rows("classifier", "logits")),
        prefix="convnext.",
    )


CONVNEXT_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("convnext",),
    module=ConvNeXt,
    fields=CONVNEXT_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=lambda module: image_inputs(),
    adjusted=classifier("classifier"),
)
