"""torchvision's convnext_tiny to convnext_large."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import Naming, Row, blocks_of, convolution_rows, linear_rows, norm_rows
from arch_jax.models.cnn.convnext import ConvNeXt


def _naming(module: ConvNeXt) -> Naming:
    """Stages and the convolutions between them alternate in one list of features."""
    rows = convolution_rows("features.0.0", "stem") + norm_rows("features.0.1", "stem_norm")
    for stage in range(1, len(module.blocks)):
        theirs = f"features.{2 * stage}"
        rows += norm_rows(f"{theirs}.0", f"halving_{stage}_norm") + convolution_rows(f"{theirs}.1", f"halving_{stage}")
    for stage, place, ours in blocks_of(module.blocks):
        theirs = f"features.{2 * stage + 1}.{place}"
        rows.append(Row(f"{theirs}.layer_scale", (f"{ours}/scale",), ones=(1, 2)))
        rows += convolution_rows(f"{theirs}.block.0", f"{ours}/depthwise")
        rows += norm_rows(f"{theirs}.block.2", f"{ours}/norm")
        rows += linear_rows(f"{theirs}.block.3", f"{ours}/up") + linear_rows(f"{theirs}.block.5", f"{ours}/down")
    return Naming((*rows, *norm_rows("classifier.0", "logits_norm"), *linear_rows("classifier.2", "logits")))


TORCHVISION_CONVNEXTS = released_type(
    "torchvision",
    ConvNeXt,
    {f"convnext_{size}": Released(f"convnext-{size}") for size in ("tiny", "small", "base", "large")},
    _naming,
)
