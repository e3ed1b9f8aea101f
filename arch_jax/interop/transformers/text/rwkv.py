"""RWKV-4 (`model_type` "rwkv")."""

from collections.abc import Mapping
from typing import Any

from arch_jax.errors import UsageError
from arch_jax.interop.checkpoint_type import CheckpointType, text_inputs
from arch_jax.interop.configuration_fields import Field, Fields, because, flag, only, whole, whole_or_none
from arch_jax.interop.row import LINEAR, LayerRows, Naming, Row, norm_rows
from arch_jax.interop.transformers.library import TRANSFORMERS, architectures, output_layer, text_fields
from arch_jax.layers.mixers.rwkv4 import RWKV4, RWKV4Channel
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder

RWKV_FIELDS = Fields(
    reads={
        "vocab_size": Field(whole, 50_277),
        "hidden_size": Field(whole, 4096),
        "num_hidden_layers": Field(whole, 32),
        "attention_hidden_size": Field(whole_or_none),
        "intermediate_size": Field(whole_or_none),
        "layer_norm_epsilon": Field(only(1e-5), 1e-5),  # another one would not reach their last norm
        "tie_word_embeddings": Field(flag, False),
    },
    no_effect=because("the length that their kernel allows; the recurrence has none", "context_length")
    | because("the recurrence has no bound on positions", "max_position_embeddings")
    # Evaluation halves the residual stream, and what is added to it, every so many layers: behind a norm nothing is
    # left of it but the share that epsilon has in a variance.
    | because("rescales the residual stream against overflow in float16, where ours is float32", "rescale_every"),
)


def _read(c: Mapping[str, Any]) -> Decoder:
    width = c["hidden_size"]
    hidden = None if c["attention_hidden_size"] == width else c["attention_hidden_size"]
    wider = None if c["intermediate_size"] == 4 * width else c["intermediate_size"]
    return Decoder(
        vocabulary=c["vocab_size"],
        depth=2 * c["num_hidden_layers"],
        width=width,
        mixer=(RWKV4(hidden=hidden), RWKV4Channel(hidden=wider)),
        feed_forward=None,
        norm=LayerNorm(epsilon=c["layer_norm_epsilon"]),
        embedding_norm=True,
        embedding_std=1e-4,
        tied=c["tie_word_embeddings"],
    )


def _write(m: Mapping[str, Any], module: Decoder) -> dict[str, Any]:
    mixers = module.mixers
    if [type(mixer) for mixer in mixers] != [RWKV4, RWKV4Channel]:
        raise UsageError("mixer is not the pair of rwkv4 and rwkv4_channel")
    if module.depth % 2:
        raise UsageError(
            f"depth is {module.depth}; expected an even number, a time mixing and a channel mixing a layer"
        )
    return text_fields(module) | {
        "architectures": architectures("RwkvForCausalLM", module),
        "hidden_size": module.width,
        "num_hidden_layers": module.depth // 2,
        "attention_hidden_size": mixers[0].hidden or module.width,
        "intermediate_size": mixers[1].hidden or 4 * module.width,
        "layer_norm_epsilon": m["norm"].get("epsilon", 1e-5),
        "context_length": 1024,
        "rescale_every": 0,
    }


def _naming(module: Decoder) -> Naming:
    layer = "rwkv.blocks.{}."
    attention, forward = f"{layer}attention.", f"{layer}feed_forward."
    mixes = lambda theirs, block, *names: tuple(
        Row(f"{theirs}time_mix_{name}", (f"mixer/mix_{name}",), ones=(0, 1), block=block) for name in names
    )
    kernels = lambda theirs, block, *names: tuple(
        Row(f"{theirs}{name}.weight", (f"mixer/{name}/kernel",), axes=LINEAR, block=block) for name in names
    )
    rows = (
        *norm_rows(f"{layer}ln1", "mixer_norm"),
        Row(f"{attention}time_decay", ("mixer/decay",)),
        Row(f"{attention}time_first", ("mixer/bonus",)),
        *mixes(attention, 0, "key", "value", "receptance"),
        *kernels(attention, 0, "key", "value", "receptance", "output"),
        *(row._replace(block=1) for row in norm_rows(f"{layer}ln2", "mixer_norm")),
        *mixes(forward, 1, "key", "receptance"),
        *kernels(forward, 1, "key", "receptance", "value"),
    )
    return Naming(
        prefix="rwkv.",
        sizes={"rwkv.embeddings.weight": (module.vocabulary, module.width)},
        rows=(
            Row("rwkv.embeddings.weight", ("embedding/embedding",)),
            *norm_rows("rwkv.blocks.0.pre_ln", "first_norm"),
            *norm_rows("rwkv.ln_out", "final_norm"),
            Row("head.weight", ("logits/kernel",), axes=LINEAR),
        ),
        stacks=(LayerRows("stack", module.depth // 2, rows, blocks=2),),
        copies={"head.weight": "rwkv.embeddings.weight"},
    )


RWKV_TYPE = CheckpointType(
    library=TRANSFORMERS,
    names=("rwkv",),
    module=Decoder,
    fields=RWKV_FIELDS,
    read=_read,
    namings={"transformers": _naming},
    write=_write,
    inputs=text_inputs,
    adjusted=output_layer("head.weight"),
    unsaid=("head",),
)
