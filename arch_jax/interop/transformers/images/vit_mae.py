"""The masked autoencoder (`model_type` "vit_mae"): encoder and decoder, as ViTMAEForPreTraining has them."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, divides, flag, number, whole
from arch_jax.interop.row import FixedTensor, Naming, Row, linear_rows, norm_rows, patch_rows
from arch_jax.interop.strict_json import shown
from arch_jax.interop.transformers.images.vit import VIT_COMMON_FIELDS, vit_configuration, vit_stack
from arch_jax.interop.transformers.library import TRANSFORMERS
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.models.transformer.mae import MAE
from arch_jax.ops.attention.positions import sinusoidal_grid


def _share(name: str, value: Any) -> float:
    """A share of the patches."""
    if not 0 < number(name, value) < 1:
        raise UsageError(f"{name} is {shown(value)}; expected a number between 0 and 1, exclusive, such as 0.75")
    return float(value)


VIT_MAE_FIELDS = Fields(
    reads={
        "num_channels": Field(whole, 3),
        "decoder_num_attention_heads": Field(whole, 16),
        "decoder_hidden_size": Field(whole, 512),
        "decoder_num_hidden_layers": Field(whole, 8),
        "decoder_intermediate_size": Field(whole, 2048),
        "mask_ratio": Field(_share, 0.75),
        "norm_pix_loss": Field(flag, False),
    },
).beside(VIT_COMMON_FIELDS)


def _read(c: Mapping[str, Any]) -> MAE:
    std = c["initializer_range"]

    def layer(prefix: str) -> tuple[Attention, MLP]:
        heads, width = f"{prefix}num_attention_heads", f"{prefix}hidden_size"
        divides(heads, c[heads], width, c[width])
        bias = {"bias": c["qkv_bias"], "output_bias": True}
        attention = Attention(heads=c[heads], causal=False, initial_std=std, **bias)
        hidden = c[f"{prefix}intermediate_size"]
        return attention, MLP(hidden=hidden, activation=c["hidden_act"], initial_std=std)

    mixer, feed_forward = layer("")
    decoder_mixer, decoder_feed_forward = layer("decoder_")
    return MAE(
        resolution=c["image_size"],
        channels=c["num_channels"],
        patch=c["patch_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=mixer,
        feed_forward=feed_forward,
        decoder_depth=c["decoder_num_hidden_layers"],
        decoder_width=c["decoder_hidden_size"],
        decoder_mixer=decoder_mixer,
        decoder_feed_forward=decoder_feed_forward,
        norm=LayerNorm(epsilon=c["layer_norm_eps"]),
        masking_ratio=c["mask_ratio"],
        normalised_pixels=c["norm_pix_loss"],
        initial_std=std,
    )


def _write(m: Mapping[str, Any], module: MAE) -> dict[str, Any]:
    return {
        "architectures": ["ViTMAEForPreTraining"],
        **vit_configuration(m, module),
        "decoder_hidden_size": module.decoder_width,
        "decoder_num_hidden_layers": module.decoder_depth,
        "decoder_num_attention_heads": m["decoder_mixer"].get("heads", 1),
        "decoder_intermediate_size": m["decoder_feed_forward"].get("hidden", 1),
        "num_channels": module.channels,
        "mask_ratio": module.masking_ratio,
        "norm_pix_loss": module.normalised_pixels,
    }


def _positions(module: MAE, width: int) -> FixedTensor:
    """The table of sines and cosines, with zeros for the class token: a tensor there, a constant here."""
    grid = module.grid(module.resolution, module.resolution)

    def make() -> np.ndarray:
        return np.pad(np.asarray(sinusoidal_grid(*grid, width)), ((1, 0), (0, 0)))[None]

    return FixedTensor((1, 1 + grid[0] * grid[1], width), make)


def _naming(module: MAE, decoder: str) -> Naming:
    """The tensors, with the layers of the decoder under the name of `decoder`."""
    return Naming(
        rows=(
            Row("vit.embeddings.cls_token", ("class_token",), ones=(0, 1)),
            Row("vit.embeddings.position_embeddings", (), fixed=_positions(module, module.width)),
            *patch_rows("vit.embeddings.patch_embeddings.projection", "patch_embedding", module.patch),
            *norm_rows("vit.layernorm", "final_norm"),
            Row("decoder.mask_token", ("mask_token",), ones=(0, 1)),
            Row("decoder.decoder_pos_embed", (), fixed=_positions(module, module.decoder_width)),
            *linear_rows("decoder.decoder_embed", "decoder_embedding"),
            *norm_rows("decoder.decoder_norm", "decoder_norm"),
            *linear_rows("decoder.decoder_pred", "pixels"),
        ),
        stacks=(
            vit_stack("vit.encoder.layer.{}", "stack", module.depth),
            vit_stack(decoder, "decoder_stack", module.decoder_depth),
        ),
        sizes={
            "vit.embeddings.cls_token": (1, 1, module.width),
            "decoder.mask_token": (1, 1, module.decoder_width),
        },
    )


#: Published checkpoints name the decoder's layers in the first way, transformers 5.23 writes the second and reads both.
_NAMINGS = {
    "transformers": "decoder.decoder_layers.{}",
    "transformers 5.23": "decoder.decoder_encoder.layer.{}",
}

VIT_MAE_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("vit_mae",),
    module=MAE,
    fields=VIT_MAE_FIELDS,
    read=_read,
    namings={version: functools.partial(_naming, decoder=decoder) for version, decoder in _NAMINGS.items()},
    write=_write,
    inputs=lambda module: image_inputs(module.resolution, module.resolution, module.channels),
)
