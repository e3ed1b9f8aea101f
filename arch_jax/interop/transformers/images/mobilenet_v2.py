"""MobileNetV2 (`model_type` "mobilenet_v2")."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, flag, number, positive, whole
from arch_jax.interop.row import BATCH_COUNTS, Naming, Row, blocks_of, linear_rows, normed_convolution_rows
from arch_jax.interop.transformers.library import (
    CLASSES,
    DROPOUT,
    TRANSFORMERS,
    architectures,
    class_fields,
    classifier,
    label_count,
)
from arch_jax.layers.norms import BatchNorm
from arch_jax.models.cnn.mobilenet import MobileNetV2

MOBILENET_V2_FIELDS = Fields(
    reads=CLASSES
    | {
        "depth_multiplier": Field(positive, 1.0),
        "depth_divisible_by": Field(whole, 8),
        "min_depth": Field(whole, 8),
        "tf_padding": Field(flag, True),
        "layer_norm_eps": Field(number, 1e-3),
    },
    no_effect=because(DROPOUT, "classifier_dropout_prob")
    | because("images may have any size", "image_size")
    | because("concerns initial weights alone", "initializer_range")
    | because("belongs to the loss of segmentation", "semantic_loss_ignore_index"),
    refuses={
        "num_channels": (3,),
        "expand_ratio": (6, 6.0),
        "output_stride": (32,),
        "first_layer_is_expansion": (True,),
        "finegrained_output": (True,),
        "hidden_act": ("relu6",),
    },
)


def _read(c: Mapping[str, Any]) -> MobileNetV2:
    if c["min_depth"] != c["depth_divisible_by"]:
        raise UsageError(f"min_depth is {c['min_depth']}; expected depth_divisible_by, {c['depth_divisible_by']}")
    first = MobileNetV2(multiplier=c["depth_multiplier"], divisor=c["depth_divisible_by"])
    if first.channels(first.stem) == (width := first.channels(first.stages[0][1])):
        raise UsageError(
            f"depth_multiplier is {c['depth_multiplier']}, with which the first block has {width} channels on both "
            "sides: the paper then adds its inputs, and transformers does not; expected a larger one"
        )
    return MobileNetV2(
        classes=label_count(c),
        multiplier=c["depth_multiplier"],
        divisor=c["depth_divisible_by"],
        padding="same" if c["tf_padding"] else None,
        dropout=0.0,
        norm=BatchNorm(epsilon=c["layer_norm_eps"], momentum=0.997),
    )


def _write(m: Mapping[str, Any], module: MobileNetV2) -> dict[str, Any]:
    return {
        "architectures": architectures("MobileNetV2ForImageClassification", module),
        **class_fields(module.classes),
        "num_channels": 3,
        "depth_multiplier": module.multiplier,
        "depth_divisible_by": module.divisor,
        "min_depth": module.divisor,
        "expand_ratio": 6.0,
        "output_stride": 32,
        "first_layer_is_expansion": True,
        "finegrained_output": True,
        "hidden_act": "relu6",
        "tf_padding": module.padding == "same",
        "classifier_dropout_prob": module.dropout,
        "layer_norm_eps": m["norm"].get("epsilon", 1e-3),
    }


def _naming(module: MobileNetV2) -> Naming:
    def layer(theirs: str, ours: str) -> list[Row]:
        theirs = f"mobilenet_v2.{theirs}"
        return normed_convolution_rows(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    rows = layer("conv_stem.first_conv", "stem")
    for at, (_, _, ours) in enumerate(blocks_of(count for _, _, count, _ in module.stages)):
        theirs = f"layer.{at - 1}" if at else "conv_stem"
        for name, part in (("expand_1x1", "expand"), ("conv_3x3", "depthwise"), ("reduce_1x1", "project")):
            rows += layer(f"{theirs}.{name}", f"{ours}/{part}")
    return Naming(
        (*rows, *layer("conv_1x1", "head"), *linear_rows("classifier", "logits")),
        buffers=BATCH_COUNTS,
        prefix="mobilenet_v2.",
    )


MOBILENET_V2_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("mobilenet_v2",),
    module=MobileNetV2,
    fields=MOBILENET_V2_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=lambda module: image_inputs(),
    adjusted=classifier("classifier"),
)
