"""EfficientNet: `model_type` "efficientnet", and the names of timm, torchvision and efficientnet_pytorch."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import (
    Field,
    choice,
    label_names,
    labels,
    number,
    only,
    positive,
    read_fields,
    whole,
    wholes,
)
from arch_jax.interop.pictures.picture_type import (
    CONVOLUTION,
    PictureType,
    Released,
    Row,
    batch_norm,
    convolution,
    linear,
)
from arch_jax.layers.norms import BatchNorm
from arch_jax.layers.vision.inverted_residual import divisible
from arch_jax.models.cnn.efficientnet import EfficientNet

FIELDS = {
    "num_channels": Field(only(3), 3),
    "width_coefficient": Field(positive, 2.0),
    "depth_coefficient": Field(positive, 3.1),
    "depth_divisor": Field(whole, 8),
    "kernel_sizes": Field(wholes, (3, 3, 5, 3, 5, 5, 3)),
    "in_channels": Field(wholes, (32, 16, 24, 40, 80, 112, 192)),
    "out_channels": Field(wholes, (16, 24, 40, 80, 112, 192, 320)),
    "strides": Field(wholes, (1, 2, 2, 2, 1, 2, 1)),
    "num_block_repeats": Field(wholes, (1, 2, 2, 3, 3, 4, 1)),
    "expand_ratios": Field(wholes, (1, 6, 6, 6, 6, 6, 6)),
    "squeeze_expansion_ratio": Field(number, 0.25),
    "hidden_act": Field(choice({"swish": "silu", "silu": "silu"}), "swish"),
    "hidden_dim": Field(whole, 2560),
    "pooling_type": Field(only("mean"), "mean"),
    "batch_norm_eps": Field(number, 1e-3),
    "depthwise_padding": Field(only([]), []),
}
_HARMLESS = ["batch_norm_momentum", "dropout_rate", "drop_connect_rate", "image_size", "initializer_range"]
_HARMLESS += ["num_hidden_layers"]
#: Channels of the first and the last convolution, before the factor: transformers has no fields for them.
_STEM, _HEAD = 32, 1280
_STAGES = ("expand_ratios", "out_channels", "num_block_repeats", "strides", "kernel_sizes")


def _read(data: Mapping[str, Any]) -> EfficientNet:
    c = read_fields(data, FIELDS, _HARMLESS)
    lengths = {name: len(c[name]) for name in (*_STAGES, "in_channels")}
    if len(set(lengths.values())) != 1:
        raise UsageError(f"the stages' lists have {lengths} entries; expected one of each for a stage")
    expected = [_STEM, *c["out_channels"][:-1]]
    if list(c["in_channels"]) != expected:
        raise UsageError(f"in_channels is {list(c['in_channels'])}; expected the stem's and out_channels, {expected}")
    factor, divisor = c["width_coefficient"], c["depth_divisor"]
    if (head := divisible(_HEAD * factor, divisor)) != c["hidden_dim"]:
        raise UsageError(f"hidden_dim is {c['hidden_dim']}; expected {head}, {_HEAD} times width_coefficient, rounded")
    return EfficientNet(
        classes=labels(data),
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


def _write(module: EfficientNet) -> dict[str, Any]:
    stages = {name: list(values) for name, values in zip(_STAGES, zip(*module.stages))}
    return {
        "architectures": ["EfficientNetForImageClassification"],
        **label_names(module.classes),
        "num_channels": 3,
        "width_coefficient": module.width_factor,
        "depth_coefficient": module.depth_factor,
        "depth_divisor": module.divisor,
        **stages,
        "in_channels": [module.stem, *stages["out_channels"][:-1]],
        "depthwise_padding": [],
        "squeeze_expansion_ratio": module.squeeze or 0.25,
        "hidden_act": "swish",
        "hidden_dim": divisible(module.head * module.width_factor, module.divisor),
        "pooling_type": "mean",
        "batch_norm_eps": getattr(module.norm, "epsilon", 1e-3),
        "dropout_rate": module.dropout,
        "drop_connect_rate": module.stochastic_depth,
    }


def _blocks(module: EfficientNet) -> list[tuple[int, int, str, bool]]:
    """Stage, place, our name, and whether there is a convolution that widens, for every block."""
    return [
        (stage, place, f"stage_{stage}_block_{place}", expansion != 1)
        for stage, ((expansion, *_), count) in enumerate(zip(module.stages, module.counts))
        for place in range(count)
    ]


def _squeeze(module: EfficientNet, theirs: str, ours: str, reduce: str, expand: str) -> list[Row]:
    """Linear layers here, and 1 x 1 convolutions there."""
    rows: list[Row] = []
    if module.squeeze is None:
        return rows
    for name, our in ((reduce, "reduce"), (expand, "expand")):
        rows.append(Row(f"{theirs}.{name}.weight", (f"params/{ours}/squeeze/{our}/kernel",), CONVOLUTION, patch=1))
        rows.append(Row(f"{theirs}.{name}.bias", (f"params/{ours}/squeeze/{our}/bias",)))
    return rows


def _layer(convolved: str, normed: str, ours: str) -> list[Row]:
    return [*convolution(convolved, f"{ours}/convolution"), *batch_norm(normed, f"{ours}/norm")]


def _transformers(module: EfficientNet) -> list[Row]:
    start = "efficientnet.embeddings"
    rows = _layer(f"{start}.convolution", f"{start}.batchnorm", "stem")
    for at, (_, _, ours, widens) in enumerate(_blocks(module)):
        theirs = f"efficientnet.encoder.blocks.{at}"
        if widens:
            rows += _layer(f"{theirs}.expansion.expand_conv", f"{theirs}.expansion.expand_bn", f"{ours}/expand")
        depthwise = f"{theirs}.depthwise_conv.depthwise"
        rows += _layer(f"{depthwise}_conv", f"{depthwise}_norm", f"{ours}/depthwise")
        rows += _squeeze(module, f"{theirs}.squeeze_excite", ours, "reduce", "expand")
        rows += _layer(f"{theirs}.projection.project_conv", f"{theirs}.projection.project_bn", f"{ours}/project")
    rows += _layer("efficientnet.encoder.top_conv", "efficientnet.encoder.top_bn", "head")
    return rows + linear("classifier", "logits")


def _timm(module: EfficientNet) -> list[Row]:
    rows = _layer("conv_stem", "bn1", "stem")
    for stage, place, ours, widens in _blocks(module):
        theirs = f"blocks.{stage}.{place}"
        names = ["conv_pw", "conv_dw", "conv_pwl"] if widens else ["conv_dw", "conv_pw"]
        parts = ["expand", "depthwise", "project"] if widens else ["depthwise", "project"]
        for at, (name, part) in enumerate(zip(names, parts), 1):
            rows += _layer(f"{theirs}.{name}", f"{theirs}.bn{at}", f"{ours}/{part}")
        rows += _squeeze(module, f"{theirs}.se", ours, "conv_reduce", "conv_expand")
    return rows + _layer("conv_head", "bn2", "head") + linear("classifier", "logits")


def _torchvision(module: EfficientNet) -> list[Row]:
    layer = lambda theirs, ours: _layer(f"features.{theirs}.0", f"features.{theirs}.1", ours)
    rows = layer("0", "stem")
    for stage, place, ours, widens in _blocks(module):
        theirs, at = f"{stage + 1}.{place}.block", int(widens)
        if widens:
            rows += layer(f"{theirs}.0", f"{ours}/expand")
        rows += layer(f"{theirs}.{at}", f"{ours}/depthwise")
        rows += _squeeze(module, f"features.{theirs}.{at + 1}", ours, "fc1", "fc2")
        rows += layer(f"{theirs}.{at + 2}", f"{ours}/project")
    return rows + layer(str(len(module.stages) + 1), "head") + linear("classifier.1", "logits")


def _efficientnet_pytorch(module: EfficientNet) -> list[Row]:
    rows = _layer("_conv_stem", "_bn0", "stem")
    for at, (_, _, ours, widens) in enumerate(_blocks(module)):
        theirs = f"_blocks.{at}"
        if widens:
            rows += _layer(f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}/expand")
        rows += _layer(f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}/depthwise")
        rows += _squeeze(module, theirs, ours, "_se_reduce", "_se_expand")
        rows += _layer(f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}/project")
    return rows + _layer("_conv_head", "_bn1", "head") + linear("_fc", "logits")


def _architectures() -> dict[str, dict[str, Released]]:
    """timm's networks of the released weights ("tf_"), timm's own, torchvision's, and efficientnet_pytorch's."""
    even = {"padding": None, "norm.epsilon": 1e-5}  # PyTorch's own padding and default
    found = {}
    for size in range(8):
        ours = f"efficientnet-b{size}"
        found[f"tf_efficientnet_b{size}"] = {"timm": Released(ours)}
        found[f"efficientnet_b{size}"] = {
            "timm": Released(ours, even),
            # torchvision keeps the released epsilon from B5 on.
            "torchvision": Released(ours, even if size < 5 else {"padding": None}),
        }
        found[f"efficientnet-b{size}"] = {"efficientnet_pytorch": Released(ours)}
    for size in range(5):
        ours = f"efficientnet-lite{size}"
        found[f"tf_efficientnet_lite{size}"] = {"timm": Released(ours)}
        found[ours] = {"efficientnet_pytorch": Released(ours)}
    return found


EFFICIENTNET_TYPE = PictureType(
    module=EfficientNet,
    read=_read,
    write=_write,
    rows={
        "transformers": _transformers,
        "timm": _timm,
        "torchvision": _torchvision,
        "efficientnet_pytorch": _efficientnet_pytorch,
    },
    architectures=_architectures(),
)
