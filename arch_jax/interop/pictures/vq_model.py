"""diffusers' VQModel: the autoencoder of latent diffusion with quantised latents, and VQGAN's."""

from collections.abc import Mapping
from typing import Any

from arch_jax.interop.configuration_fields import Field, only, read_fields, whole, whole_or_none
from arch_jax.interop.pictures import latent_coders
from arch_jax.interop.pictures.picture_type import PictureType, Row, convolution
from arch_jax.models.autoencoder.vq_model import VQModel

FIELDS = latent_coders.FIELDS | {
    "latent_channels": Field(whole, 3),
    "num_vq_embeddings": Field(whole, 256),
    "vq_embed_dim": Field(whole_or_none),
    "norm_type": Field(only("group"), "group"),
}
#: Whether diffusers' `decode` may be given numbers of codes; that of ours always is.
_HARMLESS = [*latent_coders.HARMLESS, "lookup_from_codebook"]


def _read(data: Mapping[str, Any]) -> VQModel:
    c = read_fields(data, FIELDS, _HARMLESS, common=False)
    settings = latent_coders.settings_of(c)
    return VQModel(**settings, codes=c["num_vq_embeddings"], code_width=c["vq_embed_dim"])


def _write(module: VQModel) -> dict[str, Any]:
    return latent_coders.fields_of(module) | {
        "num_vq_embeddings": module.codes,
        "vq_embed_dim": module.code_width,
        "norm_type": "group",
        "lookup_from_codebook": False,
        "force_upcast": False,
    }


def _rows(projections: Mapping[str, str], module: VQModel) -> list[Row]:
    rows = latent_coders.rows_of(module, projections)
    rows += convolution("quant_conv", "to_code", bias=True) + convolution("post_quant_conv", "from_code", bias=True)
    return [*rows, Row("quantize.embedding.weight", ("params/codebook/codes",))]


VQ_MODEL_TYPE = PictureType(
    module=VQModel,
    read=_read,
    write=_write,
    rows={
        "diffusers": lambda module: _rows(latent_coders.NOW, module),
        "diffusers before 0.17": lambda module: _rows(latent_coders.BEFORE, module),
    },
    architectures={},
    picture=lambda module: (module.factor, module.factor, module.channels),
    library="diffusers",
)
