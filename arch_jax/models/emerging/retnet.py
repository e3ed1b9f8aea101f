"""RetNet: retention in place of attention.

Sun et al. 2023, "Retentive Network: A Successor to Transformer for Large Language Models" (2307.08621). For each layer,

    Y^l     = MSR(LN(X^l)) + X^l                            (equation 9)
    X^(l+1) = FFN(LN(Y^l)) + Y^l,   FFN(X) = gelu(X W_1) W_2

where MSR is `layers.mixers.retention.Retention`. A layer has 12 d^2 parameters (section 3.1): the retention 8 d^2, as
values and gates are twice as wide as queries and keys, and the feed-forward 4 d^2, with 2 d hidden units. Heads have
256 dimensions; 1 - gamma runs from 1/32 to 1/512 evenly by ratio. Layers, widths and heads are also those of
torchscale's `retnet_xl`, `retnet_3b` and `retnet_7b`. The vocabulary is not published; GPT-2's gives the sizes in the
models' names.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.retention import Retention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.registry import Paper, register

RETNET_FACTS = {
    "family": "emerging",
    "objective": "next_token",
    "paper": Paper(
        "Retentive Network: A Successor to Transformer for Large Language Models", "Sun et al.", 2023, "2307.08621"
    ),
    "inputs": tokens(2048),
    "architecture": "retnet",
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.heads": 2,
        "mixer.head_size": None,
        "feed_forward.hidden": 32,
    },
    "reference": "torchscale's multiscale_retention, written out in numpy: outputs within 1e-5",
    "departures": (
        "The vocabulary is not published: GPT-2's is assumed, with tied embeddings, which gives the sizes in the "
        "models' names.",
        "The score normalisation of section 2.1 is left out: the norm of each head removes the scale, and sums are "
        "kept in float32 instead.",
        "1 - gamma runs from 1/32 to 1/512 as in the paper's models; equation 8 would double 1 / (1 - gamma) from "
        "head to head (longest=None).",
    ),
    "difference": 3.3e-7,
}


def retnet_decoder(depth: int, width: int) -> Decoder:
    """A RetNet of any size; the published ones have heads of 256 dimensions."""
    return Decoder(
        vocabulary=50_257,
        depth=depth,
        width=width,
        mixer=Retention(heads=width // 256, head_size=256, longest=512.0),
        feed_forward=MLP(hidden=2 * width, activation="gelu", bias=False),
        norm=LayerNorm(epsilon=1e-5),
        tied=True,
    )


@register("retnet-1.3b", **RETNET_FACTS)
def retnet_1_3b() -> Decoder:
    """RetNet 1.3B: 24 layers, width 2048."""
    return retnet_decoder(depth=24, width=2048)


@register("retnet-2.7b", **RETNET_FACTS)
def retnet_2_7b() -> Decoder:
    """RetNet 2.7B: 32 layers, width 2560."""
    return retnet_decoder(depth=32, width=2560)


@register("retnet-6.7b", **RETNET_FACTS)
def retnet_6_7b() -> Decoder:
    """RetNet 6.7B: 32 layers, width 4096."""
    return retnet_decoder(depth=32, width=4096)
