"""EfficientNet (`model_type` "efficientnet")."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import (
    Field,
    Fields,
    because,
    choice,
    counts,
    number,
    positive,
    unchanged,
    whole,
    wholes,
)
from arch_jax.interop.row import BATCH_COUNTS, Naming, blocks_of, linear_rows, normed_convolution_rows, pointwise_rows
from arch_jax.interop.strict_json import shown
from arch_jax.interop.transformers.library import (
    CLASSES,
    TRANSFORMERS,
    architectures,
    class_fields,
    classifier,
    label_count,
)
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.inverted_residual import divisible
from arch_jax.models.cnn.efficientnet import EfficientNet

EFFICIENTNET_FIELDS = Fields(
    reads=CLASSES
    | {
        "width_coefficient": Field(positive, 2.0),
        "depth_coefficient": Field(positive, 3.1),
        "depth_divisor": Field(whole, 8),
        "kernel_sizes": Field(wholes, (3, 3, 5, 3, 5, 5, 3)),
        "in_channels": Field(wholes, (32, 16, 24, 40, 80, 112, 192)),
        "out_channels": Field(wholes, (16, 24, 40, 80, 112, 192, 320)),
        "strides": Field(wholes, (1, 2, 2, 2, 1, 2, 1)),
        "num_block_repeats": Field(counts, (1, 2, 2, 3, 3, 4, 1)),
        "expand_ratios": Field(wholes, (1, 6, 6, 6, 6, 6, 6)),
        "squeeze_expansion_ratio": Field(number, 0.25),
        "hidden_act": Field(choice({"swish": "silu", "silu": "silu"}), "swish"),
        "hidden_dim": Field(whole, 2560),
        "batch_norm_eps": Field(number, 1e-3),
        "image_size": Field(whole, 600),
        "depthwise_padding": Field(unchanged, []),
    },
    no_effect=because("dropout and stochastic depth are not taken over", "dropout_rate drop_connect_rate")
    | because("concerns training alone", "batch_norm_momentum initializer_range")
    | because("selects what a backbone returns", "out_features out_indices stage_names"),
    refuses={"num_channels": (3,), "pooling_type": ("mean",)},
    follows={"num_hidden_layers": "num_block_repeats"},
)
#: Channels of the first and the last convolution, before the factor: transformers has no fields for them.
_STEM, _HEAD = 32, 1280
_STAGES = ("expand_ratios", "out_channels", "num_block_repeats", "strides", "kernel_sizes")


def _read(c: Mapping[str, Any]) -> EfficientNet:
    lengths = {name: len(c[name]) for name in (*_STAGES, "in_channels")}
    if len(set(lengths.values())) != 1:
        raise UsageError(f"the stages' lists have {lengths} entries; expected one of each for a stage")
    expected = [_STEM, *c["out_channels"][:-1]]
    if list(c["in_channels"]) != expected:
        raise UsageError(f"in_channels is {list(c['in_channels'])}; expected the stem's and out_channels, {expected}")
    factor, divisor = c["width_coefficient"], c["depth_divisor"]
    if (head := divisible(_HEAD * factor, divisor)) != c["hidden_dim"]:
        raise UsageError(f"hidden_dim is {c['hidden_dim']}; expected {head}, {_HEAD} times width_coefficient, rounded")
    deeper = [math.ceil(c["depth_coefficient"] * count) for count in c["num_block_repeats"]]
    counts("num_block_repeats * depth_coefficient", deeper)
    # TensorFlow pads by the size of what comes in. transformers has the same padding everywhere, but for these blocks.
    odd = _odd_blocks(deeper, c["strides"], c["image_size"])
    if c["depthwise_padding"] not in ([], odd):
        raise UsageError(
            f"depthwise_padding is {shown(c['depthwise_padding'])}; expected {odd}, the blocks with a stride that get "
            f"images of odd size where image_size is {c['image_size']}"
        )
    return EfficientNet(
        classes=label_count(c),
        depth_factor=c["depth_coefficient"],
        width_factor=factor,
        stages=tuple(zip(*(c[name] for name in _STAGES))),
        stem=_STEM,
        head=_HEAD,
        divisor=divisor,
        squeeze=c["squeeze_expansion_ratio"],
        dropout=0.0,
        stochastic_depth=0.0,
        norm=BatchNorm(epsilon=c["batch_norm_eps"], momentum=0.99),
    )


def _odd_blocks(counts: Sequence[int], strides: Sequence[int], pixels: int) -> list[int]:
    """The blocks with a stride whose input has an odd size."""
    found, at, size = [], 0, math.ceil(pixels / 2)
    for count, stride in zip(counts, strides):
        if stride == 2 and size % 2:
            found.append(at)
        size, at = math.ceil(size / stride), at + count
    return found


def _pixels(module: EfficientNet) -> int:
    """The resolution of the released network with these factors; B0's where there is none."""
    factors = lambda network: (network.depth_factor, network.width_factor)
    for entry in registry.models().values():
        if entry.architecture == "efficientnet" and factors(entry.build()) == factors(module):
            return entry.inputs.size
    return 224


def _write(m: Mapping[str, Any], module: EfficientNet) -> dict[str, Any]:
    stages = {name: list(values) for name, values in zip(_STAGES, zip(*module.stages))}
    return {
        "architectures": architectures("EfficientNetForImageClassification", module),
        **class_fields(module.classes),
        "num_channels": 3,
        "width_coefficient": module.width_factor,
        "depth_coefficient": module.depth_factor,
        "depth_divisor": module.divisor,
        **stages,
        "in_channels": [module.stem, *stages["out_channels"][:-1]],
        "image_size": _pixels(module),
        "depthwise_padding": _odd_blocks(module.counts, stages["strides"], _pixels(module)),
        "squeeze_expansion_ratio": module.squeeze or 0.25,
        "hidden_act": "swish",
        "hidden_dim": divisible(module.head * module.width_factor, module.divisor),
        "pooling_type": "mean",
        "batch_norm_eps": m["norm"].get("epsilon", 1e-3),
        "dropout_rate": module.dropout,
        "drop_connect_rate": module.stochastic_depth,
    }


def _naming(module: EfficientNet) -> Naming:
    start = "efficientnet.embeddings"
    rows = normed_convolution_rows(f"{start}.convolution", f"{start}.batchnorm", "stem")
    for at, (_, _, ours) in enumerate(blocks_of(module.counts)):
        block = f"efficientnet.encoder.blocks.{at}"
        theirs = f"{block}.expansion.expand"
        rows += normed_convolution_rows(f"{theirs}_conv", f"{theirs}_bn", f"{ours}/expand")
        theirs = f"{block}.depthwise_conv.depthwise"
        rows += normed_convolution_rows(f"{theirs}_conv", f"{theirs}_norm", f"{ours}/depthwise")
        for part in ("reduce", "expand"):
            rows += pointwise_rows(f"{block}.squeeze_excite.{part}", f"{ours}/squeeze/{part}")
        theirs = f"{block}.projection.project"
        rows += normed_convolution_rows(f"{theirs}_conv", f"{theirs}_bn", f"{ours}/project")
    rows += normed_convolution_rows("efficientnet.encoder.top_conv", "efficientnet.encoder.top_bn", "head")
    return Naming((*rows, *linear_rows("classifier", "logits")), buffers=BATCH_COUNTS, prefix="efficientnet.")


EFFICIENTNET_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("efficientnet",),
    module=EfficientNet,
    fields=EFFICIENTNET_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=lambda module: image_inputs(),
    adjusted=classifier("classifier"),
)
