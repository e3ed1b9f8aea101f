"""The masked autoencoder: `model_type` "vit_mae", encoder and decoder, as ViTMAEForPreTraining has them."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import Field, flag, number, read_fields, whole
from arch_jax.interop.model_types.model_type import divides
from arch_jax.interop.pictures.picture_type import CONVOLUTION, Fixed, PictureType, Row, layer_norm, linear
from arch_jax.interop.pictures.vit import FIELDS as VIT_FIELDS
from arch_jax.interop.pictures.vit import apart, layer_rows, plain_layer
from arch_jax.interop.strict_json import shown
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


FIELDS = VIT_FIELDS | {
    "num_channels": Field(whole, 3),
    "decoder_num_attention_heads": Field(whole, 16),
    "decoder_hidden_size": Field(whole, 512),
    "decoder_num_hidden_layers": Field(whole, 8),
    "decoder_intermediate_size": Field(whole, 2048),
    "mask_ratio": Field(_share, 0.75),
    "norm_pix_loss": Field(flag, False),
}
#: The paper's networks have no dropout; a checkpoint's settings of it are not taken over.
_HARMLESS = ["hidden_dropout_prob", "attention_probs_dropout_prob"]


def _read(data: Mapping[str, Any]) -> MAE:
    c = read_fields(data, FIELDS, _HARMLESS)
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
        picture=c["image_size"],
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


def _write(module: MAE) -> dict[str, Any]:
    activation = getattr(module.feed_forward, "activation", "gelu")
    hidden = lambda part, width: getattr(part, "hidden", None) or 4 * width
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "hidden_size": module.width,
        "num_hidden_layers": module.depth,
        "num_attention_heads": getattr(module.mixer, "heads", 1),
        "intermediate_size": hidden(module.feed_forward, module.width),
        "decoder_hidden_size": module.decoder_width,
        "decoder_num_hidden_layers": module.decoder_depth,
        "decoder_num_attention_heads": getattr(module.decoder_mixer, "heads", 1),
        "decoder_intermediate_size": hidden(module.decoder_feed_forward, module.decoder_width),
        "hidden_act": activation.replace("gelu_tanh", "gelu_new"),
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": module.initial_std,
        "layer_norm_eps": getattr(module.norm, "epsilon", 1e-12),
        "image_size": module.picture,
        "patch_size": module.patch,
        "num_channels": module.channels,
        "qkv_bias": getattr(module.mixer, "bias", True),
        "mask_ratio": module.masking_ratio,
        "norm_pix_loss": module.normalised_pixels,
    }


def _plain(module: MAE) -> MAE:
    """Sizes that follow from others, written out."""
    mixer, feed_forward = plain_layer(module.mixer, module.feed_forward, module.width)
    others = plain_layer(module.decoder_mixer, module.decoder_feed_forward, module.decoder_width)
    return module.clone(mixer=mixer, feed_forward=feed_forward, decoder_mixer=others[0], decoder_feed_forward=others[1])


def _positions(module: MAE, width: int) -> Fixed:
    """The table of sines and cosines, with zeros for the class token: a tensor there, a constant here."""
    grid = module.grid(module.picture, module.picture)

    def make() -> np.ndarray:
        return np.pad(np.asarray(sinusoidal_grid(*grid, width)), ((1, 0), (0, 0)))[None]

    return Fixed((1, 1 + grid[0] * grid[1], width), make)


def _rows(module: MAE, decoder: str) -> list[Row]:
    """The tensors, with the layers of the decoder under the name of `decoder`."""
    patch = "vit.embeddings.patch_embeddings.projection"
    rows = [
        Row("vit.embeddings.cls_token", ("params/class_token",), ones=2),
        Row("vit.embeddings.position_embeddings", (), fixed=_positions(module, module.width)),
        Row(f"{patch}.weight", ("params/patch_embedding/kernel",), CONVOLUTION, patch=module.patch),
        Row(f"{patch}.bias", ("params/patch_embedding/bias",)),
        *layer_rows("vit.encoder.layer.{}", "stack/layers/block_0", module.mixer.bias, module.depth),
        *layer_norm("vit.layernorm", "final_norm"),
        Row("decoder.mask_token", ("params/mask_token",), ones=2),
        Row("decoder.decoder_pos_embed", (), fixed=_positions(module, module.decoder_width)),
        *linear("decoder.decoder_embed", "decoder_embedding"),
    ]
    rows += layer_rows(decoder, "decoder_stack/layers/block_0", module.decoder_mixer.bias, module.decoder_depth)
    return rows + layer_norm("decoder.decoder_norm", "decoder_norm") + linear("decoder.decoder_pred", "pixels")


#: Published checkpoints name the decoder's layers in the first way, transformers 5.23 writes the second and reads both.
_NAMINGS = {
    "transformers": "decoder.decoder_layers.{}",
    "transformers 5.23": "decoder.decoder_encoder.layer.{}",
}

VIT_MAE_TYPE = PictureType(
    module=MAE,
    read=_read,
    write=_write,
    rows={naming: apart(functools.partial(_rows, decoder=decoder)) for naming, decoder in _NAMINGS.items()},
    architectures={},
    picture=lambda module: (module.picture, module.picture, module.channels),
    plain=_plain,
)
