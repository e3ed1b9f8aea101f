"""Mamba-2 (`model_type` "mamba2")."""

import math
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, divides, flag, whole
from arch_jax.interop.row import Naming, Row, linear_rows
from arch_jax.interop.strict_json import INFINITY, shown
from arch_jax.interop.transformers.library import TRANSFORMERS, architectures, output_layer
from arch_jax.interop.transformers.text.mamba import (
    MAMBA_COMMON_FIELDS,
    check_step_sizes,
    mamba_configuration,
    mamba_naming,
    present_name,
)
from arch_jax.layers.mixers.ssm.mamba2 import Mamba2
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder


def _limit(name: str, value: Any) -> tuple[float, float] | None:
    """Two numbers that step sizes are clipped to; None where they clip nothing."""
    items = value if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
    least, most = (math.inf if item == INFINITY else item for item in items)
    numbers = all(type(item) in (int, float) for item in (least, most))
    if not numbers or not 0 <= least < most or not math.isfinite(least):
        raise UsageError(f"{name} is {shown(value)}; expected two numbers, 0 <= least < most, such as [0.0, 0.5]")
    return None if (least, most) == (0, math.inf) else (float(least), float(most))


MAMBA2_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 32_768),
        "hidden_size": Field(whole, 4096),
        "num_hidden_layers": Field(whole, 64),
        "state_size": Field(whole, 128),
        "num_heads": Field(whole, 128),
        "head_dim": Field(whole, 64),
        "n_groups": Field(whole, 8),
        "chunk_size": Field(whole, 256),
        "time_step_limit": Field(_limit, [0.0, INFINITY]),
        "tie_word_embeddings": Field(flag, False),
    },
    no_effect=because("transformers always normalises after the gate", "norm_before_gate")
    | because(
        "read by transformers and not used",
        "time_step_rank time_step_scale time_step_init_scheme intermediate_size",
    ),
).beside(MAMBA_COMMON_FIELDS)


def _read(c: Mapping[str, Any]) -> Decoder:
    check_step_sizes(c)
    inner = c["expand"] * c["hidden_size"]
    whole("expand * hidden_size", inner)
    if c["num_heads"] * c["head_dim"] != inner:
        raise UsageError(
            f"num_heads is {c['num_heads']} and head_dim {c['head_dim']}; expected a product of {inner}, expand times "
            "hidden_size"
        )
    divides("n_groups", c["n_groups"], "num_heads", c["num_heads"])
    whole("n_groups * state_size", c["n_groups"] * c["state_size"])
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=c["hidden_size"],
        mixer=Mamba2(
            expand=c["expand"],
            head_size=c["head_dim"],
            state=c["state_size"],
            groups=c["n_groups"],
            convolution=c["conv_kernel"],
            bias=c["use_bias"],
            convolution_bias=c["use_conv_bias"],
            epsilon=c["layer_norm_epsilon"],
            step_min=c["time_step_min"],
            step_max=c["time_step_max"],
            step_floor=c["time_step_floor"],
            step_limit=c["time_step_limit"],
        ),
        feed_forward=None,
        norm=RMSNorm(epsilon=c["layer_norm_epsilon"]),
        tied=c["tie_word_embeddings"],
        initial_std=c["initializer_range"],
        scale_residual=c["rescale_prenorm_residual"],
    )


def _write(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    mixer = module.mixer[0] if isinstance(module.mixer, tuple) else module.mixer
    mixer = mixer if isinstance(mixer, Mamba2) else Mamba2()
    least, most = mixer.step_limit or (0.0, math.inf)
    own = {
        "architectures": architectures("Mamba2ForCausalLM", module),
        "state_size": mixer.state,
        "num_heads": max(1, mixer.expand * module.width // mixer.head_size),
        "head_dim": mixer.head_size,
        "n_groups": mixer.groups,
        "chunk_size": 256,
        "time_step_limit": [least, INFINITY if math.isinf(most) else most],
    }
    return mamba_configuration(m, module, mixer) | own


def _naming(module: Decoder) -> Naming:
    mixer = "backbone.layers.{}.mixer."
    parts = ("gate", "input", "B", "C", "delta")
    return mamba_naming(
        module,
        *linear_rows(f"{mixer}in_proj", *(f"mixer/{part}" for part in parts)),
        Row(f"{mixer}dt_bias", ("mixer/delta_bias",)),
        Row(f"{mixer}A_log", ("mixer/A_log",)),
        Row(f"{mixer}D", ("mixer/D",)),
        Row(f"{mixer}norm.weight", ("mixer/norm/scale",)),
    )


MAMBA2_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("mamba2",),
    module=Decoder,
    fields=MAMBA2_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=output_layer("lm_head.weight"),
    unsaid=("head",),
    renamed=present_name,
)
