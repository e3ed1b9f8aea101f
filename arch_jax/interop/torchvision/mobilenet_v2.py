"""torchvision's mobilenet_v2."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import BATCH_COUNTS, Naming, Row, blocks_of, linear_rows, normed_convolution_rows
from arch_jax.models.cnn.mobilenet import MobileNetV2


def _naming(module: MobileNetV2) -> Naming:
    def layer(convolved: str, normed: str, ours: str) -> list[Row]:
        return normed_convolution_rows(f"features.{convolved}", f"features.{normed}", ours)

    blocks = list(blocks_of(count for _, _, count, _ in module.stages))
    rows, last = layer("0.0", "0.1", "stem"), len(blocks) + 1
    for number, (stage, _, ours) in enumerate(blocks, 1):
        widens, theirs = module.stages[stage][0] != 1, f"{number}.conv"
        if widens:
            rows += layer(f"{theirs}.0.0", f"{theirs}.0.1", f"{ours}/expand")
        at = int(widens)
        rows += layer(f"{theirs}.{at}.0", f"{theirs}.{at}.1", f"{ours}/depthwise")
        rows += layer(f"{theirs}.{at + 1}", f"{theirs}.{at + 2}", f"{ours}/project")
    rows += layer(f"{last}.0", f"{last}.1", "head")
    return Naming((*rows, *linear_rows("classifier.1", "logits")), buffers=BATCH_COUNTS)


#: PyTorch's default; the paper's own code has 1e-3.
TORCHVISION_MOBILENETS = released_type(
    "torchvision", MobileNetV2, {"mobilenet_v2": Released("mobilenet-v2", {"norm.epsilon": 1e-5})}, _naming
)
