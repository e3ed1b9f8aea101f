"""diffusers' VQModel: the autoencoder of latent diffusion with quantised latents, and VQGAN's."""

import functools
from collections.abc import Mapping
from typing import Any

from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, whole, whole_or_none
from arch_jax.interop.diffusers.latent_coders import (
    CODER_FIELDS,
    DIFFUSERS,
    PROJECTIONS,
    coder_fields,
    coder_rows,
    coder_settings,
)
from arch_jax.interop.row import Naming, Row, convolution_rows
from arch_jax.models.autoencoder.vq_model import VQModel

VQ_MODEL_FIELDS = Fields(
    reads={
        "latent_channels": Field(whole, 3),
        "num_vq_embeddings": Field(whole, 256),
        "vq_embed_dim": Field(whole_or_none),
    },
    no_effect=because("whether `decode` may be given numbers of codes; here it always may", "lookup_from_codebook"),
    refuses={"norm_type": ("group",)},
).beside(CODER_FIELDS)


def _read(c: Mapping[str, Any]) -> VQModel:
    return VQModel(**coder_settings(c), codes=c["num_vq_embeddings"], code_width=c["vq_embed_dim"])


def _write(m: Mapping[str, Any], module: VQModel) -> dict[str, Any]:
    return coder_fields(module) | {
        "num_vq_embeddings": module.codes,
        "vq_embed_dim": module.code_width,
        "norm_type": "group",
        "lookup_from_codebook": False,
        "force_upcast": False,
    }


def _naming(module: VQModel, projections: Mapping[str, str]) -> Naming:
    rows = coder_rows(module, projections)
    rows += convolution_rows("quant_conv", "to_code") + convolution_rows("post_quant_conv", "from_code")
    return Naming((*rows, Row("quantize.embedding.weight", ("codebook/codes",))))


VQ_MODEL_TYPE = CheckpointType(
    library=DIFFUSERS,
    names=("VQModel",),
    module=VQModel,
    fields=VQ_MODEL_FIELDS,
    read=_read,
    namings={version: functools.partial(_naming, projections=names) for version, names in PROJECTIONS.items()},
    write=_write,
    inputs=lambda module: image_inputs(module.factor, module.factor, module.channels),
)
