"""torchvision's efficientnet_b0 to efficientnet_b7."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import (
    BATCH_COUNTS,
    Naming,
    Row,
    blocks_of,
    linear_rows,
    normed_convolution_rows,
    pointwise_rows,
)
from arch_jax.models.cnn.efficientnet import EfficientNet


def _naming(module: EfficientNet) -> Naming:
    def layer(theirs: str, ours: str) -> list[Row]:
        return normed_convolution_rows(f"features.{theirs}.0", f"features.{theirs}.1", ours)

    rows = layer("0", "stem")
    for stage, place, ours in blocks_of(module.counts):
        widens, theirs = module.stages[stage][0] != 1, f"{stage + 1}.{place}.block"
        if widens:
            rows += layer(f"{theirs}.0", f"{ours}/expand")
        at = int(widens)
        rows += layer(f"{theirs}.{at}", f"{ours}/depthwise")
        rows += pointwise_rows(f"features.{theirs}.{at + 1}.fc1", f"{ours}/squeeze/reduce")
        rows += pointwise_rows(f"features.{theirs}.{at + 1}.fc2", f"{ours}/squeeze/expand")
        rows += layer(f"{theirs}.{at + 2}", f"{ours}/project")
    rows += layer(str(len(module.stages) + 1), "head")
    return Naming((*rows, *linear_rows("classifier.1", "logits")), buffers=BATCH_COUNTS)


def _released(size: int) -> Released:
    """PyTorch's padding, and its default epsilon up to B4: from B5 on, torchvision keeps the released one."""
    return Released(f"efficientnet-b{size}", {"padding": None} | ({"norm.epsilon": 1e-5} if size < 5 else {}))


TORCHVISION_EFFICIENTNETS = released_type(
    "torchvision", EfficientNet, {f"efficientnet_b{size}": _released(size) for size in range(8)}, _naming
)
