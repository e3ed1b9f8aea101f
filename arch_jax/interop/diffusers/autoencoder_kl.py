"""diffusers' AutoencoderKL: the autoencoder of Stable Diffusion, SDXL, Stable Diffusion 3 and FLUX.1."""

import functools
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import Field, Fields, flag, whole
from arch_jax.interop.diffusers.latent_coders import (
    CODER_FIELDS,
    DIFFUSERS,
    PROJECTIONS,
    coder_fields,
    coder_rows,
    coder_settings,
)
from arch_jax.interop.row import Naming, convolution_rows
from arch_jax.interop.strict_json import shown
from arch_jax.models.autoencoder.autoencoder_kl import AutoencoderKL


def _shift(name: str, value: Any) -> float:
    """Any finite number; null is 0."""
    return 0.0 if value is None else _finite(name, value)


def _finite(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not -3e38 < value < 3e38:
        raise UsageError(f"{name} is {shown(value)}; expected a finite number, or null")
    return float(value)


def _by_channel(name: str, value: Any) -> tuple[float, ...] | None:
    """A finite number of each channel of the latents, or null."""
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise UsageError(f"{name} is {shown(value)}; expected a list of numbers, or null")
    return tuple(_finite(f"{name}[{place}]", item) for place, item in enumerate(value))


AUTOENCODER_KL_FIELDS = Fields(
    reads={
        "latent_channels": Field(whole, 4),
        "use_quant_conv": Field(flag, True),
        "use_post_quant_conv": Field(flag, True),
        "shift_factor": Field(_shift),
        "latents_mean": Field(_by_channel),
        "latents_std": Field(_by_channel),
    },
).beside(CODER_FIELDS)


def _read(c: Mapping[str, Any]) -> AutoencoderKL:
    return AutoencoderKL(
        **coder_settings(c),
        moments_convolution=c["use_quant_conv"],
        latent_convolution=c["use_post_quant_conv"],
        shift=c["shift_factor"],
        channel_mean=c["latents_mean"],
        channel_std=c["latents_std"],
    )


def _write(m: Mapping[str, Any], module: AutoencoderKL) -> dict[str, Any]:
    return coder_fields(module) | {
        "use_quant_conv": module.moments_convolution,
        "use_post_quant_conv": module.latent_convolution,
        "shift_factor": module.shift or None,
        "latents_mean": None if module.channel_mean is None else list(module.channel_mean),
        "latents_std": None if module.channel_std is None else list(module.channel_std),
        "force_upcast": True,
    }


def _naming(module: AutoencoderKL, projections: Mapping[str, str]) -> Naming:
    rows = coder_rows(module, projections) + convolution_rows("quant_conv", "moments")
    return Naming((*rows, *convolution_rows("post_quant_conv", "from_latent")))


AUTOENCODER_KL_TYPE = CheckpointType(
    library=DIFFUSERS,
    names=("AutoencoderKL",),
    module=AutoencoderKL,
    fields=AUTOENCODER_KL_FIELDS,
    read=_read,
    namings={version: functools.partial(_naming, projections=names) for version, names in PROJECTIONS.items()},
    write=_write,
    inputs=lambda module: image_inputs(module.factor, module.factor, module.channels),
    unsaid=("variance",),  # of the likelihood, which diffusers lacks
)
