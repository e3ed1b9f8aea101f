"""Mamba (`model_type` "mamba")."""

import math
import re
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
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
)
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, linear_rows, norm_rows
from arch_jax.interop.strict_json import shown
from arch_jax.interop.transformers.library import TRANSFORMERS, architectures, output_layer, text_fields
from arch_jax.layers.mixers.ssm.mamba import Mamba
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder


def _rank(name: str, value: Any) -> int | None:
    """A rank, or "auto" for a sixteenth of the width."""
    if value == "auto":
        return None
    if isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}; expected a whole number of at least 1, or 'auto'")
    return whole(name, value)


def _taps(name: str, value: Any) -> int:
    """The size of the short convolution, which is unrolled."""
    if whole(name, value) > _MOST_TAPS:
        raise UsageError(f"{name} is {shown(value)}; expected at most {_MOST_TAPS}")
    return value


_MOST_TAPS = 256
#: What becomes of the fields that Mamba and Mamba-2 share.
MAMBA_COMMON_FIELDS = Fields(
    reads={
        "num_hidden_layers": Field(whole, 32),
        "layer_norm_epsilon": Field(number, 1e-5),
        "expand": Field(whole, 2),
        "conv_kernel": Field(_taps, 4),
        "use_bias": Field(flag, False),
        "use_conv_bias": Field(flag, True),
        "hidden_act": Field(choice({"silu": "silu", "swish": "silu"}), "silu"),
        "initializer_range": Field(number, 0.1),
        "time_step_min": Field(positive, 0.001),
        "time_step_max": Field(positive, 0.1),
        "time_step_floor": Field(positive, 1e-4),
        "rescale_prenorm_residual": Field(flag, False),
    },
    no_effect=because("the residual stream has the dtype of the computation, float32 by default", "residual_in_fp32")
    | because("selects among implementations of the same sums", "fused_add_norm use_mambapy use_associative_scan")
    | because("the vocabulary is padded already", "pad_vocab_size_multiple"),
    refuses={"rms_norm": (True,)},
)
MAMBA_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 50_280),
        "hidden_size": Field(whole, 768),
        "state_size": Field(whole, 16),
        "intermediate_size": Field(whole_or_none),
        "time_step_rank": Field(_rank, "auto"),
        "time_step_scale": Field(positive, 1.0),
        "time_step_init_scheme": Field(choice({"random": "random", "constant": "constant"}), "random"),
        "tie_word_embeddings": Field(flag, True),
    },
    no_effect=because("read nowhere in transformers' Mamba", "activation_function n_positions type_vocab_size"),
    refuses={"ssm_cfg": ({}, None)},
    # The authors' names. Some published files have them beside transformers' with the values of another size.
    fallbacks={
        "d_model": "hidden_size",
        "n_layer": "num_hidden_layers",
        "d_inner": "intermediate_size",
        "dt_rank": "time_step_rank",
    },
).beside(MAMBA_COMMON_FIELDS)


def check_step_sizes(c: Mapping[str, Any]) -> None:
    """Refuses initial step sizes if time_step_min > time_step_max."""
    if c["time_step_min"] > c["time_step_max"]:
        raise UsageError(
            f"time_step_min is {c['time_step_min']}; expected at most time_step_max, which is {c['time_step_max']}"
        )


def _read(c: Mapping[str, Any]) -> Decoder:
    check_step_sizes(c)
    # Where both are there, what wrote the file built its tensors by intermediate_size.
    width, inner = c["hidden_size"], c["intermediate_size"] or c["expand"] * c["hidden_size"]
    if whole("expand * hidden_size", inner) % width:
        raise UsageError(f"intermediate_size is {inner}; expected a multiple of hidden_size, {width}")
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=width,
        mixer=Mamba(
            expand=inner // width,
            state=c["state_size"],
            convolution=c["conv_kernel"],
            step_rank=None if c["time_step_rank"] == math.ceil(width / 16) else c["time_step_rank"],
            bias=c["use_bias"],
            convolution_bias=c["use_conv_bias"],
            step_min=c["time_step_min"],
            step_max=c["time_step_max"],
            step_floor=c["time_step_floor"],
            step_scale=c["time_step_scale"],
            step_initial=c["time_step_init_scheme"],
        ),
        feed_forward=None,
        norm=RMSNorm(epsilon=c["layer_norm_epsilon"]),
        tied=c["tie_word_embeddings"],
        initial_std=c["initializer_range"],
        scale_residual=c["rescale_prenorm_residual"],
    )


def _write(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    mixer = module.mixer[0] if isinstance(module.mixer, tuple) else module.mixer
    mixer = mixer if isinstance(mixer, Mamba) else Mamba()
    own = {
        "architectures": architectures("MambaForCausalLM", module),
        "state_size": mixer.state,
        "intermediate_size": mixer.expand * module.width,
        "time_step_rank": mixer.rank(module.width),
        "time_step_scale": mixer.step_scale,
        "time_step_init_scheme": mixer.step_initial,
        "use_mambapy": False,
    }
    return mamba_configuration(m, module, mixer) | own


def mamba_configuration(m: Mapping[str, Any], module: Decoder, mixer: Any) -> dict[str, Any]:
    """The fields that Mamba and Mamba-2 share."""
    return text_fields(module) | {
        "hidden_size": m["width"],
        "num_hidden_layers": m["depth"],
        "layer_norm_epsilon": m["norm"].get("epsilon", 1e-5),
        "expand": mixer.expand,
        "conv_kernel": mixer.convolution,
        "use_bias": mixer.bias,
        "use_conv_bias": mixer.convolution_bias,
        "hidden_act": "silu",
        "initializer_range": module.initial_std,
        "time_step_min": mixer.step_min,
        "time_step_max": mixer.step_max,
        "time_step_floor": mixer.step_floor,
        "rescale_prenorm_residual": module.scale_residual,
        "residual_in_fp32": True,
    }


def _naming(module: Decoder) -> Naming:
    mixer = "backbone.layers.{}.mixer."
    return mamba_naming(
        module,
        *linear_rows(f"{mixer}in_proj", "mixer/input", "mixer/gate"),
        *linear_rows(f"{mixer}x_proj", "mixer/ssm/delta_low", "mixer/ssm/B", "mixer/ssm/C"),
        Row(f"{mixer}dt_proj.weight", ("mixer/ssm/delta/kernel",), axes=LINEAR),
        Row(f"{mixer}dt_proj.bias", ("mixer/ssm/delta_bias",)),
        Row(f"{mixer}A_log", ("mixer/ssm/A_log",)),
        Row(f"{mixer}D", ("mixer/ssm/D",)),
    )


def mamba_naming(module: Decoder, *rows: Row) -> Naming:
    """The tensors that Mamba and Mamba-2 share, and `rows` of a layer beside them."""
    layer = "backbone.layers.{}."
    mixer = f"{layer}mixer."
    shared = (
        *norm_rows(f"{layer}norm", "mixer_norm"),
        Row(f"{mixer}conv1d.weight", ("mixer/convolution/kernel",), axes=LINEAR, ones=(1,)),
        Row(f"{mixer}conv1d.bias", ("mixer/convolution/bias",)),
        *linear_rows(f"{mixer}out_proj", "mixer/output"),
    )
    return Naming(
        prefix="backbone.",
        sizes={"backbone.embeddings.weight": (module.vocabulary, module.width)},
        rows=(
            Row("backbone.embeddings.weight", ("embedding/embedding",)),
            *norm_rows("backbone.norm_f", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        stacks=(LayerRows("stack", module.depth, (*rows, *shared)),),
        copies={"lm_head.weight": "backbone.embeddings.weight"},
    )


def present_name(name: str) -> str:
    """A tensor's present name: the authors' own checkpoints have "embedding"."""
    return re.sub(r"^(backbone\.)?embedding\.weight$", r"\1embeddings.weight", name)


MAMBA_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("mamba",),
    module=Decoder,
    fields=MAMBA_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=output_layer("lm_head.weight"),
    unsaid=("head",),
    renamed=present_name,
)
