"""torchvision's resnet18 to resnet152, whose names timm has too."""

from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import BATCH_COUNTS, Naming, blocks_of, linear_rows, normed_convolution_rows
from arch_jax.models.cnn.resnet import ResNet


def _naming(module: ResNet) -> Naming:
    rows = normed_convolution_rows("conv1", "bn1", "stem")
    for stage, place, ours in blocks_of(module.blocks):
        theirs = f"layer{stage + 1}.{place}"
        for n in range(1, 4 if module.bottleneck else 3):
            rows += normed_convolution_rows(f"{theirs}.conv{n}", f"{theirs}.bn{n}", f"{ours}/convolution_{n}")
        rows += normed_convolution_rows(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
    return Naming((*rows, *linear_rows("fc", "logits")), buffers=BATCH_COUNTS)


TORCHVISION_RESNETS = released_type(
    "torchvision", ResNet, {f"resnet{n}": Released(f"resnet-{n}") for n in (18, 34, 50, 101, 152)}, _naming
)
