"""MobileNetV2: `model_type` "mobilenet_v2", and torchvision's mobilenet_v2."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import (
    Field,
    flag,
    label_names,
    labels,
    number,
    only,
    positive,
    read_fields,
    whole,
)
from arch_jax.interop.pictures.picture_type import PictureType, Released, Row, batch_norm, convolution, linear
from arch_jax.layers.norms import BatchNorm
from arch_jax.models.cnn.mobilenet import MobileNetV2

FIELDS = {
    "num_channels": Field(only(3), 3),
    "depth_multiplier": Field(positive, 1.0),
    "depth_divisible_by": Field(whole, 8),
    "min_depth": Field(whole, 8),
    "expand_ratio": Field(only(6, 6.0), 6.0),
    "output_stride": Field(only(32), 32),
    "first_layer_is_expansion": Field(only(True), True),
    "finegrained_output": Field(only(True), True),
    "hidden_act": Field(only("relu6"), "relu6"),
    "tf_padding": Field(flag, True),
    "layer_norm_eps": Field(number, 1e-3),
}
_HARMLESS = ["classifier_dropout_prob", "image_size", "initializer_range", "semantic_loss_ignore_index"]


def _read(data: Mapping[str, Any]) -> MobileNetV2:
    c = read_fields(data, FIELDS, _HARMLESS)
    if c["min_depth"] != c["depth_divisible_by"]:
        raise UsageError(f"min_depth is {c['min_depth']}; expected depth_divisible_by, {c['depth_divisible_by']}")
    first = MobileNetV2(multiplier=c["depth_multiplier"], divisor=c["depth_divisible_by"])
    if first.channels(first.stem) == (width := first.channels(first.stages[0][1])):
        raise UsageError(
            f"depth_multiplier is {c['depth_multiplier']}, with which the first block has {width} channels on both "
            "sides: the paper then adds its inputs, and transformers does not; expected a larger one"
        )
    return MobileNetV2(
        classes=labels(data),
        multiplier=c["depth_multiplier"],
        divisor=c["depth_divisible_by"],
        padding="same" if c["tf_padding"] else None,
        dropout=0.0,
        norm=BatchNorm(epsilon=c["layer_norm_eps"], momentum=0.997),
    )


def _write(module: MobileNetV2) -> dict[str, Any]:
    return {
        "architectures": ["MobileNetV2ForImageClassification"],
        **label_names(module.classes),
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
        "layer_norm_eps": getattr(module.norm, "epsilon", 1e-3),
    }


def _blocks(module: MobileNetV2) -> list[tuple[str, bool]]:
    """Our name of every block, and whether it has a convolution that widens."""
    return [
        (f"stage_{stage}_block_{place}", expansion != 1)
        for stage, (expansion, _, count, _) in enumerate(module.stages)
        for place in range(count)
    ]


def _transformers(module: MobileNetV2) -> list[Row]:
    def layer(theirs: str, ours: str) -> list[Row]:
        return [
            *convolution(f"mobilenet_v2.{theirs}.convolution", f"{ours}/convolution"),
            *batch_norm(f"mobilenet_v2.{theirs}.normalization", f"{ours}/norm"),
        ]

    rows = layer("conv_stem.first_conv", "stem")
    for at, (ours, widens) in enumerate(_blocks(module)):
        theirs = f"layer.{at - 1}" if at else "conv_stem"
        if widens:
            rows += layer(f"{theirs}.expand_1x1", f"{ours}/expand")
        rows += layer(f"{theirs}.conv_3x3", f"{ours}/depthwise") + layer(f"{theirs}.reduce_1x1", f"{ours}/project")
    return rows + layer("conv_1x1", "head") + linear("classifier", "logits")


def _torchvision(module: MobileNetV2) -> list[Row]:
    def layer(convolved: str, normed: str, ours: str) -> list[Row]:
        return [
            *convolution(f"features.{convolved}", f"{ours}/convolution"),
            *batch_norm(f"features.{normed}", f"{ours}/norm"),
        ]

    rows, last = layer("0.0", "0.1", "stem"), len(_blocks(module)) + 1
    for place, (ours, widens) in enumerate(_blocks(module), 1):
        theirs, at = f"{place}.conv", int(widens)
        if widens:
            rows += layer(f"{theirs}.0.0", f"{theirs}.0.1", f"{ours}/expand")
        rows += layer(f"{theirs}.{at}.0", f"{theirs}.{at}.1", f"{ours}/depthwise")
        rows += layer(f"{theirs}.{at + 1}", f"{theirs}.{at + 2}", f"{ours}/project")
    return rows + layer(f"{last}.0", f"{last}.1", "head") + linear("classifier.1", "logits")


def _timm(module: MobileNetV2) -> list[Row]:
    layer = lambda convolved, normed, ours: [
        *convolution(convolved, f"{ours}/convolution"),
        *batch_norm(normed, f"{ours}/norm"),
    ]
    rows = layer("conv_stem", "bn1", "stem")
    for stage, (expansion, _, count, _) in enumerate(module.stages):
        for place in range(count):
            theirs, ours = f"blocks.{stage}.{place}", f"stage_{stage}_block_{place}"
            names = ["conv_pw", "conv_dw", "conv_pwl"] if expansion != 1 else ["conv_dw", "conv_pw"]
            for at, (name, part) in enumerate(zip(names, ["expand", "depthwise", "project"][-len(names) :]), 1):
                rows += layer(f"{theirs}.{name}", f"{theirs}.bn{at}", f"{ours}/{part}")
    return rows + layer("conv_head", "bn2", "head") + linear("classifier", "logits")


#: Both libraries have PyTorch's default; the paper's own code has 1e-3.
_EPSILON = {"norm.epsilon": 1e-5}

MOBILENET_V2_TYPE = PictureType(
    module=MobileNetV2,
    read=_read,
    write=_write,
    rows={"transformers": _transformers, "torchvision": _torchvision, "timm": _timm},
    architectures={
        "mobilenet_v2": {"torchvision": Released("mobilenet-v2", _EPSILON)},
        "mobilenetv2_100": {"timm": Released("mobilenet-v2", _EPSILON)},
        "mobilenetv2_050": {"timm": Released("mobilenet-v2", _EPSILON | {"multiplier": 0.5})},
        "mobilenetv2_140": {"timm": Released("mobilenet-v2", _EPSILON | {"multiplier": 1.4})},
    },
)
