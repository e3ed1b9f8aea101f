"""timm's convnext_tiny to convnext_large."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import Naming, Row, blocks_of, convolution_rows, linear_rows, norm_rows
from arch_jax.models.cnn.convnext import ConvNeXt


def _naming(module: ConvNeXt) -> Naming:
    rows = convolution_rows("stem.0", "stem") + norm_rows("stem.1", "stem_norm")
    for stage in range(1, len(module.blocks)):
        theirs = f"stages.{stage}.downsample"
        rows += norm_rows(f"{theirs}.0", f"halving_{stage}_norm") + convolution_rows(f"{theirs}.1", f"halving_{stage}")
    for stage, place, ours in blocks_of(module.blocks):
        theirs = f"stages.{stage}.blocks.{place}"
        rows.append(Row(f"{theirs}.gamma", (f"{ours}/scale",)))
        rows += convolution_rows(f"{theirs}.conv_dw", f"{ours}/depthwise") + norm_rows(f"{theirs}.norm", f"{ours}/norm")
        rows += linear_rows(f"{theirs}.mlp.fc1", f"{ours}/up") + linear_rows(f"{theirs}.mlp.fc2", f"{ours}/down")
    return Naming((*rows, *norm_rows("head.norm", "logits_norm"), *linear_rows("head.fc", "logits")))


TIMM_CONVNEXTS = released_type(
    "timm",
    ConvNeXt,
    {f"convnext_{size}": Released(f"convnext-{size}") for size in ("tiny", "small", "base", "large")},
    _naming,
)
