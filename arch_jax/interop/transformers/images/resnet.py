"""ResNet (`model_type` "resnet")."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, choice, counts, flag, whole, wholes
from arch_jax.interop.row import BATCH_COUNTS, Naming, Row, blocks_of, linear_rows, normed_convolution_rows
from arch_jax.interop.transformers.library import (
    ACTIVATION_NAMES,
    CLASSES,
    TRANSFORMERS,
    architectures,
    class_fields,
    classifier,
    label_count,
)
from arch_jax.models.cnn.resnet import ResNet

RESNET_FIELDS = Fields(
    reads=CLASSES
    | {
        "embedding_size": Field(whole, 64),
        "hidden_sizes": Field(wholes, (256, 512, 1024, 2048)),
        "depths": Field(counts, (3, 4, 6, 3)),
        "layer_type": Field(choice({"basic": "basic", "bottleneck": "bottleneck"}), "bottleneck"),
        "downsample_in_bottleneck": Field(flag, False),
        "downsample_in_first_stage": Field(flag, False),
        "hidden_act": Field(choice(ACTIVATION_NAMES), "relu"),
    },
    no_effect=because("selects what a backbone returns", "out_features out_indices stage_names"),
    refuses={"num_channels": (3,)},
)


def _read(c: Mapping[str, Any]) -> ResNet:
    bottleneck = c["layer_type"] == "bottleneck"
    widths = c["hidden_sizes"]
    if len(widths) != len(c["depths"]):
        raise UsageError(
            f"hidden_sizes is {list(widths)} and depths {list(c['depths'])}; expected one of each for a stage"
        )
    module = ResNet(
        classes=label_count(c),
        blocks=c["depths"],
        width=c["embedding_size"],
        bottleneck=bottleneck,
        stride_first=bottleneck and c["downsample_in_bottleneck"],
        first_stride=2 if c["downsample_in_first_stage"] else 1,
        activation=c["hidden_act"],
    )
    return module if module.features == widths else module.clone(widths=widths)


def _write(m: Mapping[str, Any], module: ResNet) -> dict[str, Any]:
    return {
        "architectures": architectures("ResNetForImageClassification", module),
        **class_fields(module.classes),
        "num_channels": 3,
        "embedding_size": module.width,
        "hidden_sizes": list(module.features),
        "depths": list(module.blocks),
        "layer_type": "bottleneck" if module.bottleneck else "basic",
        "hidden_act": module.activation.replace("gelu_tanh", "gelu_new"),
        "downsample_in_first_stage": module.first_stride == 2,
        "downsample_in_bottleneck": module.stride_first,
    }


def _naming(module: ResNet) -> Naming:
    def layer(theirs: str, ours: str) -> list[Row]:
        return normed_convolution_rows(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    rows = layer("resnet.embedder.embedder", "stem")
    for stage, place, ours in blocks_of(module.blocks):
        theirs = f"resnet.encoder.stages.{stage}.layers.{place}"
        rows += layer(f"{theirs}.shortcut", f"{ours}/shortcut")
        for number in range(3 if module.bottleneck else 2):
            rows += layer(f"{theirs}.layer.{number}", f"{ours}/convolution_{number + 1}")
    return Naming((*rows, *linear_rows("classifier.1", "logits")), buffers=BATCH_COUNTS, prefix="resnet.")


RESNET_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("resnet",),
    module=ResNet,
    fields=RESNET_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=lambda module: image_inputs(),
    adjusted=classifier("classifier.1"),
)
