"""timm's vit_tiny_patch16_224 to vit_huge_patch14_224."""

from arch_jax.interop.checkpoint_type import image_inputs
from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import LayerRows, Naming, Row, linear_rows, norm_rows, patch_rows
from arch_jax.models.transformer.vit import ViT


def _naming(module: ViT) -> Naming:
    layer = "blocks.{}"
    rows = (
        *linear_rows(f"{layer}.attn.qkv", "mixer/query", "mixer/key", "mixer/value"),
        *linear_rows(f"{layer}.attn.proj", "mixer/output"),
        *linear_rows(f"{layer}.mlp.fc1", "feed_forward/up"),
        *linear_rows(f"{layer}.mlp.fc2", "feed_forward/down"),
        *norm_rows(f"{layer}.norm1", "mixer_norm"),
        *norm_rows(f"{layer}.norm2", "feed_forward_norm"),
    )
    return Naming(
        rows=(
            Row("cls_token", ("class_token",), ones=(0, 1)),
            Row("pos_embed", ("position_embedding",), ones=(0,)),
            *patch_rows("patch_embed.proj", "patch_embedding", module.patch),
            *norm_rows("norm", "final_norm"),
            *linear_rows("head", "logits"),
        ),
        stacks=(LayerRows("stack", module.depth, rows),),
    )


_SIZES = {
    "tiny_patch16": "tiny-16",
    "small_patch16": "small-16",
    "base_patch16": "base-16",
    "base_patch32": "base-32",
    "large_patch16": "large-16",
    "huge_patch14": "huge-14",
}

TIMM_VITS = released_type(
    "timm",
    ViT,
    {f"vit_{theirs}_224": Released(f"vit-{ours}") for theirs, ours in _SIZES.items()},
    _naming,
    pooling="token",
    inputs=lambda module: image_inputs(module.resolution, module.resolution),
)
