"""Mamba and Mamba-2 as their authors publish them: a config.json with `d_model` and `ssm_cfg`, and no `model_type`.

Its settings are the arguments of the authors' classes, whose defaults count where it says nothing. The tensors have
the names that transformers took over, but for the embedding's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, Library, text_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, flag, unchanged, whole, whole_or_none
from arch_jax.interop.safetensors import FILES
from arch_jax.interop.strict_json import INFINITY, shown
from arch_jax.interop.transformers.text.mamba import MAMBA_TYPE
from arch_jax.interop.transformers.text.mamba2 import MAMBA2_TYPE
from arch_jax.layers.transformer.decoder import Decoder


def _layer(config: Mapping[str, Any]) -> Any:
    """The name of the layer's class, which is Mamba's where the file does not say it."""
    settings = config.get("ssm_cfg")
    return settings.get("layer", "Mamba1") if isinstance(settings, Mapping) else settings


MAMBA_SSM = Library(
    "mamba_ssm",
    "ssm_cfg",
    FILES["mamba_ssm"],
    Fields(
        reads={
            "d_model": Field(whole, 2560),
            "n_layer": Field(whole, 64),
            "vocab_size": Field(whole, 50_277),
            "pad_vocab_size_multiple": Field(whole, 8),
            "tie_embeddings": Field(flag, True),
            "ssm_cfg.d_conv": Field(whole, 4),
            "ssm_cfg.expand": Field(whole, 2),
            "ssm_cfg.bias": Field(flag, False),
            "ssm_cfg.conv_bias": Field(flag, True),
            "ssm_cfg.dt_min": Field(unchanged, 0.001),
            "ssm_cfg.dt_max": Field(unchanged, 0.1),
            "ssm_cfg.dt_init_floor": Field(unchanged, 1e-4),
        },
        no_effect=because("the residual stream has the dtype of the computation", "residual_in_fp32")
        | because("selects among implementations of the same sums", "fused_add_norm ssm_cfg.use_fast_path")
        | because("selects among implementations of the same sums", "ssm_cfg.use_mem_eff_path")
        | because("names the type", "ssm_cfg.layer")
        | because("belongs to attention layers, of which there are none", "attn_cfg"),
        refuses={"rms_norm": (True,), "d_intermediate": (0,), "attn_layer_idx": ([], None)},
        nested=("ssm_cfg",),
    ),
    named=_layer,
)


def _shared(c: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' fields of what both have. The authors pad the vocabulary when they make the model."""
    vocabulary, multiple = c["vocab_size"], c["pad_vocab_size_multiple"]
    return {
        "vocab_size": vocabulary + -vocabulary % multiple,
        "hidden_size": c["d_model"],
        "num_hidden_layers": c["n_layer"],
        "tie_word_embeddings": c["tie_embeddings"],
        "conv_kernel": c["ssm_cfg.d_conv"],
        "expand": c["ssm_cfg.expand"],
        "use_bias": c["ssm_cfg.bias"],
        "use_conv_bias": c["ssm_cfg.conv_bias"],
        "time_step_min": c["ssm_cfg.dt_min"],
        "time_step_max": c["ssm_cfg.dt_max"],
        "time_step_floor": c["ssm_cfg.dt_init_floor"],
    }


def _mamba(c: Mapping[str, Any]) -> Decoder:
    own = {
        "state_size": c["ssm_cfg.d_state"],
        "time_step_rank": c["ssm_cfg.dt_rank"],
        "time_step_scale": c["ssm_cfg.dt_scale"],
        "time_step_init_scheme": c["ssm_cfg.dt_init"],
    }
    return MAMBA_TYPE.module_of(_shared(c) | own)


def _mamba2(c: Mapping[str, Any]) -> Decoder:
    inner, head = c["ssm_cfg.expand"] * c["d_model"], c["ssm_cfg.headdim"]
    if c["ssm_cfg.d_ssm"] not in (None, inner):
        raise UsageError(f"ssm_cfg.d_ssm is {c['ssm_cfg.d_ssm']}; expected {inner}, expand times d_model, or null")
    limit = c["ssm_cfg.dt_limit"]
    if not isinstance(limit, list | tuple) or len(limit) != 2:
        raise UsageError(f"ssm_cfg.dt_limit is {shown(limit)}; expected two numbers, such as [0.0, 0.5]")
    own = {
        "state_size": c["ssm_cfg.d_state"],
        "head_dim": head,
        "num_heads": inner // head,
        "n_groups": c["ssm_cfg.ngroups"],
        "time_step_limit": [INFINITY if x == float("inf") else x for x in limit],
    }
    return MAMBA2_TYPE.module_of(_shared(c) | own)


def _type(names: tuple[str, ...], like: CheckpointType, fields: Fields, read: Callable[..., Decoder]) -> CheckpointType:
    return CheckpointType(
        library=MAMBA_SSM,
        names=names,
        module=Decoder,
        fields=fields,
        read=read,
        namings={"mamba_ssm": like.namings["transformers"]},
        write=None,
        inputs=text_inputs,
        renamed=like.renamed,
    )


MAMBA_SSM_MAMBA = _type(
    ("Mamba1",),
    MAMBA_TYPE,
    Fields(
        reads={
            "ssm_cfg.d_state": Field(whole, 16),
            "ssm_cfg.dt_rank": Field(unchanged, "auto"),
            "ssm_cfg.dt_scale": Field(unchanged, 1.0),
            "ssm_cfg.dt_init": Field(unchanged, "random"),
        }
    ),
    _mamba,
)
MAMBA_SSM_MAMBA2 = _type(
    ("Mamba2",),
    MAMBA2_TYPE,
    Fields(
        reads={
            "ssm_cfg.d_state": Field(whole, 128),
            "ssm_cfg.headdim": Field(whole, 64),
            "ssm_cfg.ngroups": Field(whole, 1),
            "ssm_cfg.d_ssm": Field(whole_or_none),
            "ssm_cfg.dt_limit": Field(unchanged, [0.0, float("inf")]),
        },
        no_effect=because("concerns initial values alone", "ssm_cfg.A_init_range ssm_cfg.conv_init")
        | because("the length of a chunk changes no sum", "ssm_cfg.chunk_size"),
        refuses={
            "ssm_cfg.D_has_hdim": (False,),
            "ssm_cfg.rmsnorm": (True,),
            "ssm_cfg.norm_before_gate": (False,),
        },
    ),
    _mamba2,
)
