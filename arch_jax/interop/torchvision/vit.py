"""torchvision's vit_b_16 to vit_h_14."""

from arch_jax.interop.checkpoint_type import image_inputs
from arch_jax.interop.released import Released, released_type
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, linear_rows, norm_rows, patch_rows
from arch_jax.models.transformer.vit import ViT


def _naming(module: ViT) -> Naming:
    layer, parts = "encoder.layers.encoder_layer_{}", ("query", "key", "value")
    rows = (
        Row(f"{layer}.self_attention.in_proj_weight", tuple(f"mixer/{part}/kernel" for part in parts), LINEAR),
        Row(f"{layer}.self_attention.in_proj_bias", tuple(f"mixer/{part}/bias" for part in parts)),
        *linear_rows(f"{layer}.self_attention.out_proj", "mixer/output"),
        *linear_rows(f"{layer}.mlp.0", "feed_forward/up"),
        *linear_rows(f"{layer}.mlp.3", "feed_forward/down"),
        *norm_rows(f"{layer}.ln_1", "mixer_norm"),
        *norm_rows(f"{layer}.ln_2", "feed_forward_norm"),
    )
    return Naming(
        rows=(
            Row("class_token", ("class_token",), ones=(0, 1)),
            Row("encoder.pos_embedding", ("position_embedding",), ones=(0,)),
            *patch_rows("conv_proj", "patch_embedding", module.patch),
            *norm_rows("encoder.ln", "final_norm"),
            *linear_rows("heads.head", "logits"),
        ),
        stacks=(LayerRows("stack", module.depth, rows),),
    )


TORCHVISION_VITS = released_type(
    "torchvision",
    ViT,
    {
        "vit_b_16": Released("vit-base-16"),
        "vit_b_32": Released("vit-base-32"),
        "vit_l_16": Released("vit-large-16"),
        "vit_h_14": Released("vit-huge-14"),
    },
    _naming,
    pooling="token",
    inputs=lambda module: image_inputs(module.resolution, module.resolution),
)
