"""diffusers' UNet2DModel: the U-Net of DDPM, and those of its tutorials on images without a text."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, image_inputs
from arch_jax.interop.configuration_fields import (
    Field,
    Fields,
    because,
    choice,
    flag,
    number,
    positive,
    whole,
    whole_or_none,
    wholes,
)
from arch_jax.interop.diffusers.latent_coders import (
    DIFFUSERS,
    PROJECTIONS,
    attention_of,
    check_blocks,
    level_rows,
    middle_rows,
    units_of,
)
from arch_jax.interop.row import Naming, Row, convolution_rows, linear_rows, norm_rows
from arch_jax.interop.strict_json import shown
from arch_jax.models.diffusion.ddpm_unet import DDPMUNet
from arch_jax.ops.diffusion.condition import Condition

_DOWN, _UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
_PADDINGS = ("after", "around")
#: Resolution of a network that says none; its positions are those of convolutions.
_RESOLUTION = 32


def _side(name: str, value: Any) -> int | None:
    """A side of square images: a number, two equal ones, or null."""
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return whole_or_none(name, value)


def _padding(name: str, value: Any) -> str:
    """Zeros of the convolutions of stride 2: 0 is after the last row and column alone, 1 is on every side."""
    if type(value) is not int or value not in (0, 1):
        raise UsageError(f"{name} is {shown(value)}, which is not supported; expected 0 or 1")
    return _PADDINGS[value]


UNET_FIELDS = Fields(
    reads={
        "sample_size": Field(_side),
        "in_channels": Field(whole, 3),
        "out_channels": Field(whole, 3),
        "freq_shift": Field(number, 0),
        "flip_sin_to_cos": Field(flag, True),
        "down_block_types": Field(attention_of(_DOWN), (_DOWN[0], *3 * (_DOWN[1],))),
        "up_block_types": Field(attention_of(_UP), (*3 * (_UP[1],), _UP[0])),
        "block_out_channels": Field(wholes, (224, 448, 672, 896)),
        "layers_per_block": Field(units_of, 2),
        "downsample_padding": Field(_padding, 1),
        "act_fn": Field(choice({"silu": "silu", "swish": "silu"}), "silu"),
        "attention_head_dim": Field(whole_or_none, 8),
        "norm_num_groups": Field(whole, 32),
        "norm_eps": Field(positive, 1e-5),
        "add_attention": Field(flag, True),
        "num_class_embeds": Field(whole_or_none),
    },
    no_effect=because("dropout is not taken over", "dropout")
    | because("the size of a table of learned times, which is not supported", "num_train_timesteps"),
    refuses={
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "time_embedding_dim": (None,),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1, 1.0),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "attn_norm_num_groups": (None,),
        "resnet_time_scale_shift": ("default",),
        "class_embed_type": (None,),
    },
)


def _read(c: Mapping[str, Any]) -> DDPMUNet:
    channels, outputs = c["in_channels"], c["out_channels"]
    if outputs not in (channels, 2 * channels):
        raise UsageError(
            f"out_channels is {outputs}; expected in_channels, {channels}, or with a learned variance {2 * channels}"
        )
    widths = c["block_out_channels"]
    factor = 2 ** min(len(widths) - 1, 30)
    return DDPMUNet(
        resolution=c["sample_size"] or max(_RESOLUTION, factor),
        channels=channels,
        classes=c["num_class_embeds"],
        learned_variance=outputs != channels,
        widths=widths,
        units=c["layers_per_block"],
        attention=check_blocks(c["down_block_types"], c["up_block_types"], widths, _UP),
        mid_attention=c["add_attention"],
        head_size=c["attention_head_dim"],
        groups=c["norm_num_groups"],
        dropout=0.0,
        epsilon=c["norm_eps"],
        frequency_shift=float(c["freq_shift"]),
        cosine_first=c["flip_sin_to_cos"],
        padding=c["downsample_padding"],
    )


def _write(m: Mapping[str, Any], module: DDPMUNet) -> dict[str, Any]:
    if module.patch != 1:
        raise UsageError(f"patch is {module.patch}, which UNet2DModel does not have; expected 1")
    attends = [level in module.attention for level in range(len(module.widths))]
    shift = module.frequency_shift
    return {
        "sample_size": module.resolution,
        "in_channels": module.channels,
        "out_channels": module.channels * (1 + module.learned_variance),
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": int(shift) if shift == int(shift) else shift,
        "flip_sin_to_cos": module.cosine_first,
        "down_block_types": [_DOWN[each] for each in attends],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [_UP[each] for each in reversed(attends)],
        "block_out_channels": list(module.widths),
        "layers_per_block": module.units,
        "mid_block_scale_factor": 1,
        "downsample_padding": _PADDINGS.index(module.padding),
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": module.dropout,
        "act_fn": "silu",
        "attention_head_dim": module.head_size,
        "norm_num_groups": module.groups,
        "norm_eps": module.epsilon,
        "resnet_time_scale_shift": "default",
        "add_attention": module.mid_attention,
        "num_class_embeds": module.classes,
    }


def _inputs(module: DDPMUNet) -> tuple:
    labels = None if module.classes is None else Condition(label=jax.ShapeDtypeStruct((1,), jnp.int32))
    images = image_inputs(module.factor, module.factor, module.channels)
    return (*images, jax.ShapeDtypeStruct((1,), jnp.float32), labels)


def _naming(module: DDPMUNet, projections: Mapping[str, str]) -> Naming:
    rows = convolution_rows("conv_in", "stem") + convolution_rows("conv_out", "outputs")
    rows += norm_rows("conv_norm_out", "norm")
    rows += linear_rows("time_embedding.linear_1", "time/hidden") + linear_rows(
        "time_embedding.linear_2", "time/output"
    )
    rows += [Row("class_embedding.weight", ("label/embedding",))]
    rows += middle_rows("mid_block", "middle", projections)
    last = len(module.widths) - 1
    for level in range(last + 1):
        rows += level_rows(f"down_blocks.{level}", f"down_{level}", module.units, projections)
        rows += convolution_rows(f"down_blocks.{level}.downsamplers.0.conv", f"halving_{level + 1}")
        up = f"up_blocks.{last - level}"
        rows += level_rows(up, f"up_{level}", module.units + 1, projections)
        rows += convolution_rows(f"{up}.upsamplers.0.conv", f"doubling_{level}")
    return Naming(tuple(rows))


UNET_TYPE = CheckpointType(
    library=DIFFUSERS,
    names=("UNet2DModel",),
    module=DDPMUNet,
    fields=UNET_FIELDS,
    read=_read,
    namings={version: functools.partial(_naming, projections=names) for version, names in PROJECTIONS.items()},
    write=_write,
    inputs=_inputs,
)
