"""xLSTM 7B and its kin (`model_type` "xlstm"): the mLSTM alone, before a SwiGLU in every block."""

import re
from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.configuration_fields import Field, flag, number, only, positive, read_fields, whole
from arch_jax.interop.model_types.model_type import Layers, ModelType, Names, Row, dense, divides, norm
from arch_jax.layers.mixers.mlstm import MLSTM
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU

XLSTM_FIELDS = {
    "vocab_size": Field(whole, 50_304),
    "hidden_size": Field(whole, 4096),
    "num_hidden_layers": Field(whole, 32),
    "num_heads": Field(whole, 8),
    "use_bias": Field(only(False), False),
    "tie_word_embeddings": Field(only(False), False),
    "add_out_norm": Field(only(True), True),
    "norm_eps": Field(number, 1e-6),
    "eps": Field(number, 1e-6),
    "qk_dim_factor": Field(positive, 0.5),
    "v_dim_factor": Field(positive, 1.0),
    "ffn_proj_factor": Field(positive, 2.667),
    "ffn_round_up_to_multiple_of": Field(whole, 64),
    "gate_soft_cap": Field(positive, 15.0),
    "output_logit_soft_cap": Field(positive, 30.0),
    "weight_mode": Field(only("single"), "single"),
    "norm_reduction_force_float32": Field(flag, True),
}
#: How the same numbers are computed: kernels and their dtypes, chunks, whether states are returned.
_HARMLESS = [
    "autocast_kernel_dtype",
    "chunk_size",
    "chunkwise_kernel",
    "inference_state_dtype",
    "max_inference_chunksize",
    "mode",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
]
_ALIASES = {"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"}


def _xlstm(data: Mapping[str, Any]) -> Decoder:
    c = read_fields(data, XLSTM_FIELDS, _HARMLESS, _ALIASES)
    width, heads = c["hidden_size"], c["num_heads"]
    sizes = []
    for name in ("qk_dim_factor", "v_dim_factor"):
        size = int(width * c[name])
        if size < 1:
            raise UsageError(
                f"{name} is {c[name]}, which leaves no dimension of {width}; expected at least 1 / {width}"
            )
        whole(f"hidden_size * {name}", size)
        divides("num_heads", heads, f"hidden_size * {name}", size)
        sizes.append(size // heads)
    multiple = c["ffn_round_up_to_multiple_of"]
    hidden = int((width * c["ffn_proj_factor"] + multiple - 1) // multiple * multiple)
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=c["num_hidden_layers"],
        width=width,
        mixer=MLSTM(
            heads=heads,
            expansion=None,
            convolution=0,
            block_size=None,
            key_size=sizes[0],
            value_size=sizes[1],
            gate_softcap=c["gate_soft_cap"],
            input_bias=-10.0,
            norm_epsilon=c["norm_eps"],
            epsilon=c["eps"],
        ),
        feed_forward=SwiGLU(hidden=whole("hidden_size * ffn_proj_factor", hidden), initial_std=(0.4 / width) ** 0.5),
        norm=RMSNorm(epsilon=c["norm_eps"]),
        tied=False,
        initial_std=(0.4 / width) ** 0.5,
        logit_softcap=c["output_logit_soft_cap"],
    )


def _xlstm_configuration(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    mixer, width = m["mixer"], m["width"]
    heads = mixer.get("heads", 1)
    keys, values = (heads * (mixer.get(f"{name}_size") or max(1, width // heads)) for name in ("key", "value"))
    hidden = m["feed_forward"].get("hidden", 1)
    usual = (width * 2.667 + 63) // 64 * 64 == hidden
    return {
        "architectures": ["xLSTMForCausalLM"],
        "hidden_size": width,
        "embedding_dim": width,
        "num_hidden_layers": m["depth"],
        "num_blocks": m["depth"],
        "num_heads": heads,
        "use_bias": False,
        "add_out_norm": True,
        "norm_eps": m["norm"].get("epsilon", 1e-6),
        "eps": mixer.get("epsilon", 1e-6),
        "qk_dim_factor": _factor(keys, width),
        "v_dim_factor": _factor(values, width),
        "ffn_proj_factor": 2.667 if usual else _factor(hidden, width),
        "ffn_round_up_to_multiple_of": 64 if usual else 1,
        "gate_soft_cap": mixer.get("gate_softcap"),
        "output_logit_soft_cap": module.logit_softcap,
        "weight_mode": "single",
    }


def _factor(size: int, width: int) -> float:
    """What `width` is multiplied by for a size: the quotient, or a little more where rounding would lose one."""
    return size / width if int(width * (size / width)) == size else (size + 0.5) / width


def _names(module: Decoder) -> Names:
    layer = "backbone.blocks.{}."
    projections = ("q", "query"), ("k", "key"), ("v", "value"), ("ogate_preact", "output_gate"), ("out_proj", "output")
    rows = (
        *norm(f"{layer}norm_mlstm", "mixer_norm"),
        *(row for theirs, ours in projections for row in dense(f"{layer}mlstm_layer.{theirs}", f"mixer/{ours}")),
        *_gate(f"{layer}mlstm_layer.igate_preact", "mixer/input"),
        *_gate(f"{layer}mlstm_layer.fgate_preact", "mixer/forget"),
        Row(f"{layer}mlstm_layer.multihead_norm.weight", ("mixer/norm_scale",)),
        *norm(f"{layer}norm_ffn", "feed_forward_norm"),
        *dense(f"{layer}ffn.proj_up_gate", "feed_forward/gate"),
        *dense(f"{layer}ffn.proj_up", "feed_forward/up"),
        *dense(f"{layer}ffn.proj_down", "feed_forward/down"),
    )
    return Names(
        prefix="backbone.",
        embedding="backbone.embeddings.weight",
        rows=(
            Row("backbone.embeddings.weight", ("embedding/embedding",)),
            *norm("backbone.out_norm", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), transposed=True),
        ),
        stacks=(Layers("stack", module.depth, re.compile(r"(?:backbone\.)?blocks\.([0-9]{1,9})\."), rows),),
        buffers=re.compile(r"(?!)"),
        copies={},
    )


def _gate(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a gate's linear layer."""
    return Row(f"{theirs}.weight", (f"{ours}_gate/kernel",), transposed=True), Row(f"{theirs}.bias", (f"{ours}_bias",))


XLSTM_TYPE = ModelType(Decoder, _xlstm, _xlstm_configuration, _names)
