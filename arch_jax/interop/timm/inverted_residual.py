"""timm's names in a network of inverted residual blocks: MobileNetV2 and EfficientNet."""

from collections.abc import Iterable

from arch_jax.interop.row import BATCH_COUNTS, Naming, blocks_of, linear_rows, normed_convolution_rows, pointwise_rows


def inverted_residual_naming(counts: Iterable[int], expansions: Iterable[int]) -> Naming:
    """The tensors of a network.

    Args:
      counts: blocks of each stage.
      expansions: by which the blocks of each stage widen; a block that does not has no convolution for it.
    """
    rows, expansions = normed_convolution_rows("conv_stem", "bn1", "stem"), list(expansions)
    for stage, place, ours in blocks_of(counts):
        theirs, widens = f"blocks.{stage}.{place}", expansions[stage] != 1
        names = ["conv_pw", "conv_dw", "conv_pwl"] if widens else ["conv_dw", "conv_pw"]
        parts = ["expand", "depthwise", "project"] if widens else ["depthwise", "project"]
        for number, (name, part) in enumerate(zip(names, parts), 1):
            rows += normed_convolution_rows(f"{theirs}.{name}", f"{theirs}.bn{number}", f"{ours}/{part}")
        rows += pointwise_rows(f"{theirs}.se.conv_reduce", f"{ours}/squeeze/reduce")
        rows += pointwise_rows(f"{theirs}.se.conv_expand", f"{ours}/squeeze/expand")
    rows += normed_convolution_rows("conv_head", "bn2", "head")
    return Naming((*rows, *linear_rows("classifier", "logits")), buffers=BATCH_COUNTS)
