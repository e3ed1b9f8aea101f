"""xLSTM 7B and its kin (`model_type` "xlstm"): the mLSTM alone, before a SwiGLU in every block."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, divides, flag, number, positive, whole
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, linear_rows, norm_rows
from arch_jax.interop.transformers.library import TRANSFORMERS, architectures, output_layer, text_fields
from arch_jax.layers.mixers.mlstm import MLSTM
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU

XLSTM_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 50_304),
        "hidden_size": Field(whole, 4096),
        "num_hidden_layers": Field(whole, 32),
        "num_heads": Field(whole, 8),
        "norm_eps": Field(number, 1e-6),
        "eps": Field(number, 1e-6),
        "qk_dim_factor": Field(positive, 0.5),
        "v_dim_factor": Field(positive, 1.0),
        "ffn_proj_factor": Field(positive, 2.667),
        "ffn_round_up_to_multiple_of": Field(whole, 64),
        "gate_soft_cap": Field(positive, 15.0),
        "output_logit_soft_cap": Field(positive, 30.0),
        "norm_reduction_force_float32": Field(flag, True),  # which ours always are
    },
    no_effect=because(
        "selects among kernels for the same numbers, their dtypes and chunks",
        "autocast_kernel_dtype chunk_size chunkwise_kernel inference_state_dtype max_inference_chunksize mode "
        "sequence_kernel step_kernel",
    )
    | because("selects what is returned", "return_last_states"),
    refuses={
        "use_bias": (False,),
        "tie_word_embeddings": (False,),
        "add_out_norm": (True,),
        "weight_mode": ("single",),
    },
    aliases={"embedding_dim": "hidden_size", "num_blocks": "num_hidden_layers"},
)


def _read(c: Mapping[str, Any]) -> Decoder:
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


def _write(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    mixer, width = m["mixer"], m["width"]
    heads = mixer.get("heads", 1)
    keys, values = (heads * (mixer.get(f"{name}_size") or max(1, width // heads)) for name in ("key", "value"))
    hidden = m["feed_forward"].get("hidden", 1)
    usual = (width * 2.667 + 63) // 64 * 64 == hidden
    return text_fields(module) | {
        "architectures": architectures("xLSTMForCausalLM", module),
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
    """The factor that makes a size of `width`: the quotient, or a little more where rounding would lose one."""
    return size / width if int(width * (size / width)) == size else (size + 0.5) / width


def _naming(module: Decoder) -> Naming:
    layer = "backbone.blocks.{}."
    projections = ("q", "query"), ("k", "key"), ("v", "value"), ("ogate_preact", "output_gate"), ("out_proj", "output")
    rows = (
        *norm_rows(f"{layer}norm_mlstm", "mixer_norm"),
        *(row for theirs, ours in projections for row in linear_rows(f"{layer}mlstm_layer.{theirs}", f"mixer/{ours}")),
        *_gate(f"{layer}mlstm_layer.igate_preact", "mixer/input"),
        *_gate(f"{layer}mlstm_layer.fgate_preact", "mixer/forget"),
        Row(f"{layer}mlstm_layer.multihead_norm.weight", ("mixer/norm_scale",)),
        *norm_rows(f"{layer}norm_ffn", "feed_forward_norm"),
        *linear_rows(f"{layer}ffn.proj_up_gate", "feed_forward/gate"),
        *linear_rows(f"{layer}ffn.proj_up", "feed_forward/up"),
        *linear_rows(f"{layer}ffn.proj_down", "feed_forward/down"),
    )
    return Naming(
        prefix="backbone.",
        sizes={"backbone.embeddings.weight": (module.vocabulary, module.width)},
        rows=(
            Row("backbone.embeddings.weight", ("embedding/embedding",)),
            *norm_rows("backbone.out_norm", "final_norm"),
            Row("lm_head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        stacks=(LayerRows("stack", module.depth, rows),),
    )


def _gate(theirs: str, ours: str) -> tuple[Row, Row]:
    """The rows of a gate's linear layer."""
    return Row(f"{theirs}.weight", (f"{ours}_gate/kernel",), axes=LINEAR), Row(f"{theirs}.bias", (f"{ours}_bias",))


XLSTM_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("xlstm",),
    module=Decoder,
    fields=XLSTM_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=output_layer("lm_head.weight"),
    unsaid=("head",),
)
