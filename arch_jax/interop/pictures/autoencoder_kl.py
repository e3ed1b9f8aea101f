"""diffusers' AutoencoderKL: the autoencoder of Stable Diffusion, SDXL, Stable Diffusion 3 and FLUX.1."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import Field, flag, only, read_fields, whole
from arch_jax.interop.pictures import latent_coders
from arch_jax.interop.pictures.picture_type import PictureType, Row, convolution
from arch_jax.interop.strict_json import shown
from arch_jax.models.autoencoder.autoencoder_kl import AutoencoderKL


def _shift(name: str, value: Any) -> float:
    """Any finite number; null is 0."""
    if value is None:
        return 0.0
    if type(value) not in (int, float) or not -3e38 < value < 3e38:
        raise UsageError(f"{name} is {shown(value)}; expected a finite number, or null")
    return float(value)


FIELDS = latent_coders.FIELDS | {
    "latent_channels": Field(whole, 4),
    "use_quant_conv": Field(flag, True),
    "use_post_quant_conv": Field(flag, True),
    "shift_factor": Field(_shift),
    "latents_mean": Field(only(None)),
    "latents_std": Field(only(None)),
}


def _read(data: Mapping[str, Any]) -> AutoencoderKL:
    c = read_fields(data, FIELDS, latent_coders.HARMLESS, common=False)
    return AutoencoderKL(
        **latent_coders.settings_of(c),
        moments_convolution=c["use_quant_conv"],
        latent_convolution=c["use_post_quant_conv"],
        shift=c["shift_factor"],
    )


def _write(module: AutoencoderKL) -> dict[str, Any]:
    return latent_coders.fields_of(module) | {
        "use_quant_conv": module.moments_convolution,
        "use_post_quant_conv": module.latent_convolution,
        "shift_factor": module.shift or None,
        "latents_mean": None,
        "latents_std": None,
        "force_upcast": True,
    }


def _rows(projections: Mapping[str, str], module: AutoencoderKL) -> list[Row]:
    rows = latent_coders.rows_of(module, projections)
    rows += convolution("quant_conv", "moments", bias=True) if module.moments_convolution else []
    return rows + (convolution("post_quant_conv", "from_latent", bias=True) if module.latent_convolution else [])


AUTOENCODER_KL_TYPE = PictureType(
    module=AutoencoderKL,
    read=_read,
    write=_write,
    rows={
        "diffusers": lambda module: _rows(latent_coders.NOW, module),
        "diffusers before 0.17": lambda module: _rows(latent_coders.BEFORE, module),
    },
    architectures={},
    picture=lambda module: (module.factor, module.factor, module.channels),
    plain=lambda module: module.clone(variance=1.0),  # of the likelihood, which diffusers lacks
    library="diffusers",
)
