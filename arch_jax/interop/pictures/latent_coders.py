"""What diffusers' AutoencoderKL and VQModel share: fields of config.json, and the tensors of encoder and decoder."""

from collections.abc import Callable, Mapping
from typing import Any

from arch_jax.errors import UsageError, nearest
from arch_jax.interop.configuration_fields import Field, choice, flag, positive, whole, wholes
from arch_jax.interop.pictures.picture_type import LINEAR, Row, convolution, layer_norm
from arch_jax.interop.strict_json import shown

#: Residual blocks of a level: beyond it, a file could keep us counting for hours.
_MOST_UNITS = 64
_DOWN, _UP = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), ("UpDecoderBlock2D", "AttnUpDecoderBlock2D")


def _units(name: str, value: Any) -> int:
    if whole(name, value) > _MOST_UNITS:
        raise UsageError(f"{name} is {shown(value)}; expected at most {_MOST_UNITS}")
    return value


def _attention(kinds: tuple[str, str]) -> Callable[[str, Any], tuple[bool, ...]]:
    """A list of blocks, without or with attention: whether there is any in each."""

    def read(name: str, value: Any) -> tuple[bool, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise UsageError(f"{name} is {shown(value)}; expected a list of {kinds[0]!r} and such")
        for kind in value:
            if not isinstance(kind, str) or kind not in kinds:
                raise UsageError(f"{name} has {shown(kind)}, which is not supported{nearest(str(kind)[:80], kinds)}")
        return tuple(kind == kinds[1] for kind in value)

    return read


#: Fields of both classes, with diffusers' defaults.
FIELDS = {
    "in_channels": Field(whole, 3),
    "out_channels": Field(whole, 3),
    "down_block_types": Field(_attention(_DOWN), (_DOWN[0],)),
    "up_block_types": Field(_attention(_UP), (_UP[0],)),
    "block_out_channels": Field(wholes, (64,)),
    "layers_per_block": Field(_units, 1),
    "act_fn": Field(choice({"silu": "silu", "swish": "silu"}), "silu"),
    "norm_num_groups": Field(whole, 32),
    "sample_size": Field(whole, 32),
    "scaling_factor": Field(positive, 0.18215),
    "mid_block_add_attention": Field(flag, True),
}
#: In which precision diffusers' pipelines run the model; here that is `dtype`.
HARMLESS = ["force_upcast"]


def settings_of(c: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that both modules have, from the fields as they were read.

    Raises:
      UsageError: fields that don't fit together, or that the two coders here always share.
    """
    if c["in_channels"] != c["out_channels"]:
        raise UsageError(f"out_channels is {c['out_channels']}; expected in_channels, {c['in_channels']}")
    down, up, widths = c["down_block_types"], c["up_block_types"], c["block_out_channels"]
    for name, kinds in (("down_block_types", down), ("up_block_types", up)):
        if len(kinds) != len(widths):
            raise UsageError(f"{name} has {len(kinds)} entries; expected {len(widths)}, as block_out_channels has")
    if up[::-1] != down:
        expected = [_UP[attends] for attends in down[::-1]]
        raise UsageError(f"up_block_types has attention elsewhere than down_block_types; expected {expected}")
    return {
        "picture": c["sample_size"],
        "channels": c["in_channels"],
        "latent": c["latent_channels"],
        "widths": widths,
        "units": c["layers_per_block"],
        "groups": c["norm_num_groups"],
        "attention": tuple(level for level, attends in enumerate(down) if attends),
        "mid_attention": c["mid_block_add_attention"],
        "scale": c["scaling_factor"],
    }


def fields_of(module: Any) -> dict[str, Any]:
    """The other way of `settings_of`."""
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
        "sample_size": module.picture,
        "scaling_factor": module.scale,
        "mid_block_add_attention": module.mid_attention,
    }


#: Our projections of attention -> diffusers' names of them, and those that it had before version 0.17.
NOW = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
BEFORE = {"query": "query", "key": "key", "value": "value", "output": "proj_attn"}


def rows_of(module: Any, projections: Mapping[str, str]) -> list[Row]:
    """The tensors of encoder and decoder, with either names of the projections."""
    last, previous = len(module.widths) - 1, module.widths[0]
    rows = convolution("encoder.conv_in", "encoder/stem", bias=True)
    for level, width in enumerate(module.widths):
        theirs = f"encoder.down_blocks.{level}"
        rows += _level(module, "encoder", theirs, level, module.units, previous != width, projections)
        if level < last:
            rows += convolution(f"{theirs}.downsamplers.0.conv", f"encoder/halving_{level + 1}", bias=True)
        previous = width
    rows += _ends(module, "encoder", projections) + convolution("decoder.conv_in", "decoder/stem", bias=True)
    for place, level in enumerate(range(last, -1, -1)):
        theirs, width = f"decoder.up_blocks.{place}", module.widths[level]
        rows += _level(module, "decoder", theirs, level, module.units + 1, previous != width, projections)
        if level:
            rows += convolution(f"{theirs}.upsamplers.0.conv", f"decoder/doubling_{level}", bias=True)
        previous = width
    return rows + _ends(module, "decoder", projections)


def _level(
    module: Any, coder: str, theirs: str, level: int, units: int, changes: bool, projections: Mapping[str, str]
) -> list[Row]:
    """The residual blocks of a level, of which the first may change the channels, and the attention behind them."""
    rows = []
    for unit in range(units):
        rows += _block(f"{theirs}.resnets.{unit}", f"{coder}/level_{level}_unit_{unit}", changes and unit == 0)
        if level in module.attention:
            ours = f"{coder}/level_{level}_attention_{unit}"
            rows += _attended(f"{theirs}.attentions.{unit}", ours, projections)
    return rows


def _ends(module: Any, coder: str, projections: Mapping[str, str]) -> list[Row]:
    """The middle, and what follows the last level."""
    rows = _block(f"{coder}.mid_block.resnets.0", f"{coder}/middle/unit_0")
    if module.mid_attention:
        rows += _attended(f"{coder}.mid_block.attentions.0", f"{coder}/middle/attention", projections)
    rows += _block(f"{coder}.mid_block.resnets.1", f"{coder}/middle/unit_1")
    rows += layer_norm(f"{coder}.conv_norm_out", f"{coder}/norm")
    return rows + convolution(f"{coder}.conv_out", f"{coder}/outputs", bias=True)


def _block(theirs: str, ours: str, changes: bool = False) -> list[Row]:
    rows = []
    for number in (1, 2):
        rows += layer_norm(f"{theirs}.norm{number}", f"{ours}/norm_{number}")
        rows += convolution(f"{theirs}.conv{number}", f"{ours}/convolution_{number}", bias=True)
    return rows + convolution(f"{theirs}.conv_shortcut", f"{ours}/shortcut", bias=True) if changes else rows


def _attended(theirs: str, ours: str, projections: Mapping[str, str]) -> list[Row]:
    rows = layer_norm(f"{theirs}.group_norm", f"{ours}/norm")
    for our, name in projections.items():
        # Until diffusers had linear layers there, they were convolutions of 1 x 1, as in the authors' own checkpoints.
        rows.append(Row(f"{theirs}.{name}.weight", (f"params/{ours}/{our}/kernel",), LINEAR, window=True))
        rows.append(Row(f"{theirs}.{name}.bias", (f"params/{ours}/{our}/bias",)))
    return rows
