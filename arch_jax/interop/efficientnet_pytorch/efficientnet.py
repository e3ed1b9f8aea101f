"""efficientnet_pytorch's EfficientNets, with the released weights and settings, and EfficientNet-Lite's."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import BATCH_COUNTS, Naming, blocks_of, linear_rows, normed_convolution_rows, pointwise_rows
from arch_jax.models.cnn.efficientnet import EfficientNet


def _naming(module: EfficientNet) -> Naming:
    rows = normed_convolution_rows("_conv_stem", "_bn0", "stem")
    for at, (_, _, ours) in enumerate(blocks_of(module.counts)):
        theirs = f"_blocks.{at}"
        rows += normed_convolution_rows(f"{theirs}._expand_conv", f"{theirs}._bn0", f"{ours}/expand")
        rows += normed_convolution_rows(f"{theirs}._depthwise_conv", f"{theirs}._bn1", f"{ours}/depthwise")
        for part in ("reduce", "expand"):
            rows += pointwise_rows(f"{theirs}._se_{part}", f"{ours}/squeeze/{part}")
        rows += normed_convolution_rows(f"{theirs}._project_conv", f"{theirs}._bn2", f"{ours}/project")
    rows += normed_convolution_rows("_conv_head", "_bn1", "head")
    return Naming((*rows, *linear_rows("_fc", "logits")), buffers=BATCH_COUNTS)


_SIZES = [f"b{size}" for size in range(8)] + [f"lite{size}" for size in range(5)]
_NETWORKS = {f"efficientnet-{size}": Released(f"efficientnet-{size}") for size in _SIZES}

EFFICIENTNET_PYTORCH_NETWORKS = released_type("efficientnet_pytorch", EfficientNet, _NETWORKS, _naming)
