"""ResNet: `model_type` "resnet", and torchvision's and timm's resnet18 to resnet152."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import (
    Field,
    choice,
    flag,
    label_names,
    labels,
    only,
    read_fields,
    whole,
    wholes,
)
from arch_jax.interop.pictures.picture_type import PictureType, Released, Row, batch_norm, convolution, linear
from arch_jax.models.cnn.resnet import EXPANSION, ResNet

FIELDS = {
    "num_channels": Field(only(3), 3),
    "embedding_size": Field(whole, 64),
    "hidden_sizes": Field(wholes, (256, 512, 1024, 2048)),
    "depths": Field(wholes, (3, 4, 6, 3)),
    "layer_type": Field(choice({"basic": "basic", "bottleneck": "bottleneck"}), "bottleneck"),
    "hidden_act": Field(only("relu"), "relu"),
    "downsample_in_first_stage": Field(only(False), False),
    "downsample_in_bottleneck": Field(flag, False),
}
_HARMLESS = ["out_features", "out_indices", "stage_names"]


def _read(data: Mapping[str, Any]) -> ResNet:
    c = read_fields(data, FIELDS, _HARMLESS)
    bottleneck = c["layer_type"] == "bottleneck"
    width, stages = c["embedding_size"], len(c["depths"])
    expected = tuple(width * 2**stage * (EXPANSION if bottleneck else 1) for stage in range(stages))
    if c["hidden_sizes"] != expected:
        raise UsageError(
            f"hidden_sizes is {list(c['hidden_sizes'])}; expected {list(expected)}, which double from stage to stage"
        )
    return ResNet(
        classes=labels(data),
        blocks=c["depths"],
        width=width,
        bottleneck=bottleneck,
        stride_first=bottleneck and c["downsample_in_bottleneck"],
    )


def _write(module: ResNet) -> dict[str, Any]:
    outer = EXPANSION if module.bottleneck else 1
    return {
        "architectures": ["ResNetForImageClassification"],
        **label_names(module.classes),
        "num_channels": 3,
        "embedding_size": module.width,
        "hidden_sizes": [module.width * 2**stage * outer for stage in range(len(module.blocks))],
        "depths": list(module.blocks),
        "layer_type": "bottleneck" if module.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": module.stride_first,
    }


def _blocks(module: ResNet) -> list[tuple[int, int, str, bool]]:
    """Stage, place, our name, and whether a projection is on its shortcut, for every block."""
    changes = lambda stage, place: place == 0 and (stage > 0 or module.bottleneck)
    return [
        (stage, place, f"stage_{stage}_block_{place}", changes(stage, place))
        for stage, count in enumerate(module.blocks)
        for place in range(count)
    ]


def _transformers(module: ResNet) -> list[Row]:
    def layer(theirs: str, ours: str) -> list[Row]:
        return [
            *convolution(f"{theirs}.convolution", f"{ours}/convolution"),
            *batch_norm(f"{theirs}.normalization", f"{ours}/norm"),
        ]

    rows = layer("resnet.embedder.embedder", "stem")
    for stage, place, ours, projected in _blocks(module):
        theirs = f"resnet.encoder.stages.{stage}.layers.{place}"
        if projected:
            rows += layer(f"{theirs}.shortcut", f"{ours}/shortcut")
        for number in range(3 if module.bottleneck else 2):
            rows += layer(f"{theirs}.layer.{number}", f"{ours}/convolution_{number + 1}")
    return rows + linear("classifier.1", "logits")


def _torchvision(module: ResNet) -> list[Row]:
    def layer(convolved: str, normed: str, ours: str) -> list[Row]:
        return [*convolution(convolved, f"{ours}/convolution"), *batch_norm(normed, f"{ours}/norm")]

    rows = layer("conv1", "bn1", "stem")
    for stage, place, ours, projected in _blocks(module):
        theirs = f"layer{stage + 1}.{place}"
        for number in range(1, 4 if module.bottleneck else 3):
            rows += layer(f"{theirs}.conv{number}", f"{theirs}.bn{number}", f"{ours}/convolution_{number}")
        if projected:
            rows += layer(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
    return rows + linear("fc", "logits")


RESNET_TYPE = PictureType(
    module=ResNet,
    read=_read,
    write=_write,
    rows={"transformers": _transformers, "torchvision": _torchvision},
    # timm has torchvision's names.
    architectures={f"resnet{n}": {"torchvision": Released(f"resnet-{n}")} for n in (18, 34, 50, 101, 152)},
)
