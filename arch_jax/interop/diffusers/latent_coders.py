"""The common part of diffusers' AutoencoderKL, VQModel and UNet2DModel: fields of config.json, tensors of blocks."""

from collections.abc import Callable, Mapping
from typing import Any

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.checkpoint_type import Library
from arch_jax.interop.configuration_fields import Field, Fields, because, choice, flag, positive, whole, wholes
from arch_jax.interop.row import Row, convolution_rows, linear_rows, norm_rows
from arch_jax.interop.safetensors import FILES
from arch_jax.interop.strict_json import shown

#: Most residual blocks of a level: beyond it, counting them could take hours.
_MOST_UNITS = 64
_DOWN, _UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def units_of(name: str, value: Any) -> int:
    """The number of residual blocks of a level, which are unrolled."""
    if whole(name, value) > _MOST_UNITS:
        raise UsageError(f"{name} is {shown(value)}; expected at most {_MOST_UNITS}")
    return value


def attention_of(kinds: tuple[str, str]) -> Callable[[str, Any], tuple[bool, ...]]:
    """A reader of a list of blocks: whether each has attention."""

    def read(name: str, value: Any) -> tuple[bool, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise UsageError(f"{name} is {shown(value)}; expected a list of {kinds[0]!r} and such")
        for kind in value:
            if not isinstance(kind, str) or kind not in kinds:
                raise UsageError(f"{name} has {shown(kind)}, which is not supported{nearest(str(kind)[:80], kinds)}")
        return tuple(kind == kinds[1] for kind in value)

    return read


DIFFUSERS = Library("diffusers", "_class_name", FILES["diffusers"], Fields())

#: What becomes of the fields of both classes, with diffusers' defaults.
CODER_FIELDS = Fields(
    reads={
        "in_channels": Field(whole, 3),
        "out_channels": Field(whole, 3),
        "down_block_types": Field(attention_of(_DOWN), (_DOWN[0],)),
        "up_block_types": Field(attention_of(_UP), (_UP[0],)),
        "block_out_channels": Field(wholes, (64,)),
        "layers_per_block": Field(units_of, 1),
        "act_fn": Field(choice({"silu": "silu", "swish": "silu"}), "silu"),
        "norm_num_groups": Field(whole, 32),
        "sample_size": Field(whole, 32),
        "scaling_factor": Field(positive, 0.18215),
        "mid_block_add_attention": Field(flag, True),
    },
    no_effect=because("the precision in which diffusers' pipelines run; here that is `dtype`", "force_upcast"),
)


def check_blocks(
    down: tuple[bool, ...], up: tuple[bool, ...], widths: tuple[int, ...], kinds: tuple[str, str]
) -> tuple[int, ...]:
    """The levels with attention, which are the same on the way down and on the way up.

    Args:
      down: whether each level on the way down has attention.
      up: the same of the way up, from the lowest resolution on.
      widths: channels of each level.
      kinds: names of the blocks on the way up, without attention and with it.

    Raises:
      UsageError: other numbers of blocks than of widths; attention elsewhere on the way up.
    """
    for name, blocks in (("down_block_types", down), ("up_block_types", up)):
        if len(blocks) != len(widths):
            raise UsageError(f"{name} has {len(blocks)} entries; expected {len(widths)}, as block_out_channels has")
    if up[::-1] != down:
        expected = [kinds[attends] for attends in down[::-1]]
        raise UsageError(f"up_block_types has attention elsewhere than down_block_types; expected {expected}")
    return tuple(level for level, attends in enumerate(down) if attends)


def coder_settings(c: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that both modules have, from the fields as they were read.

    Raises:
      UsageError: fields that don't fit together, or that the two coders here always share.
    """
    if c["in_channels"] != c["out_channels"]:
        raise UsageError(f"out_channels is {c['out_channels']}; expected in_channels, {c['in_channels']}")
    widths = c["block_out_channels"]
    attention = check_blocks(c["down_block_types"], c["up_block_types"], widths, _UP)
    return {
        "resolution": c["sample_size"],
        "channels": c["in_channels"],
        "latent": c["latent_channels"],
        "widths": widths,
        "units": c["layers_per_block"],
        "groups": c["norm_num_groups"],
        "attention": attention,
        "mid_attention": c["mid_block_add_attention"],
        "scale": c["scaling_factor"],
    }


def coder_fields(module: Any) -> dict[str, Any]:
    """The fields from the module: the inverse of `coder_settings`."""
    attends = [level in module.attention for level in range(len(module.widths))]
    return {
        "in_channels": module.channels,
        "out_channels": module.channels,
        "down_block_types": [_DOWN[each] for each in attends],
        "up_block_types": [_UP[each] for each in reversed(attends)],
        "block_out_channels": list(module.widths),
        "layers_per_block": module.units,
        "act_fn": "silu",
        "latent_channels": module.latent,
        "norm_num_groups": module.groups,
        "sample_size": module.resolution,
        "scaling_factor": module.scale,
        "mid_block_add_attention": module.mid_attention,
    }


#: Version of diffusers -> our projections of attention -> its names of them.
PROJECTIONS = {
    "diffusers": {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"},
    "diffusers before 0.17": {"query": "query", "key": "key", "value": "value", "output": "proj_attn"},
}


def coder_rows(module: Any, projections: Mapping[str, str]) -> list[Row]:
    """The tensors of encoder and decoder, with the names of one version for the projections."""
    last = len(module.widths) - 1
    rows = convolution_rows("encoder.conv_in", "encoder/stem") + convolution_rows("decoder.conv_in", "decoder/stem")
    for level in range(last + 1):
        theirs = f"encoder.down_blocks.{level}"
        rows += level_rows(theirs, f"encoder/level_{level}", module.units, projections)
        rows += convolution_rows(f"{theirs}.downsamplers.0.conv", f"encoder/halving_{level + 1}")
    for place, level in enumerate(range(last, -1, -1)):
        theirs = f"decoder.up_blocks.{place}"
        rows += level_rows(theirs, f"decoder/level_{level}", module.units + 1, projections)
        rows += convolution_rows(f"{theirs}.upsamplers.0.conv", f"decoder/doubling_{level}")
    for coder in ("encoder", "decoder"):
        rows += middle_rows(f"{coder}.mid_block", f"{coder}/middle", projections)
        rows += norm_rows(f"{coder}.conv_norm_out", f"{coder}/norm")
        rows += convolution_rows(f"{coder}.conv_out", f"{coder}/outputs")
    return rows


def middle_rows(theirs: str, ours: str, projections: Mapping[str, str]) -> list[Row]:
    """The residual blocks at the lowest resolution, and the attention between them."""
    rows = block_rows(f"{theirs}.resnets.0", f"{ours}/unit_0") + block_rows(f"{theirs}.resnets.1", f"{ours}/unit_1")
    return rows + attended_rows(f"{theirs}.attentions.0", f"{ours}/attention", projections)


def level_rows(theirs: str, ours: str, units: int, projections: Mapping[str, str]) -> list[Row]:
    """The residual blocks of a level, each with the attention that may follow it."""
    rows = []
    for unit in range(units):
        rows += block_rows(f"{theirs}.resnets.{unit}", f"{ours}_unit_{unit}")
        rows += attended_rows(f"{theirs}.attentions.{unit}", f"{ours}_attention_{unit}", projections)
    return rows


def block_rows(theirs: str, ours: str) -> list[Row]:
    """A residual block, with a shortcut where the channels change and the projection of time in a denoiser."""
    rows = convolution_rows(f"{theirs}.conv_shortcut", f"{ours}/shortcut")
    rows += linear_rows(f"{theirs}.time_emb_proj", f"{ours}/time")
    for number in (1, 2):
        rows += norm_rows(f"{theirs}.norm{number}", f"{ours}/norm_{number}")
        rows += convolution_rows(f"{theirs}.conv{number}", f"{ours}/convolution_{number}")
    return rows


def attended_rows(theirs: str, ours: str, projections: Mapping[str, str]) -> list[Row]:
    """A block of attention, with the names of one version for the projections."""
    rows = norm_rows(f"{theirs}.group_norm", f"{ours}/norm")
    for our, name in projections.items():
        # Until diffusers had linear layers there, they were convolutions of 1 x 1, as in the authors' own checkpoints.
        kernel, bias = linear_rows(f"{theirs}.{name}", f"{ours}/{our}")
        rows += [kernel._replace(window=True), bias]
    return rows
