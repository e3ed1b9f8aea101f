"""Hyena: convolutions as long as the context in place of attention (Poli et al. 2023, 2302.10866).

Each layer is a pre-norm residual block of the Hyena operator and a feed-forward part (section 4.2 keeps GPT's blocks,
with another mixer):

    x_0, x_1, v = ShortConvolution(LayerNorm(h) W_in + b_in)
    a = h + (x_0 * (filter * (x_1 v) + d x_1 v)) W_out + b_out
    h' = a + MLP(LayerNorm(a))

There are no position embeddings: the filters are functions of the distance.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.hyena import Hyena
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.registry import Paper, register

FACTS = {
    "family": "ssm",
    "objective": "next_token",
    "paper": Paper("Hyena Hierarchy: Towards Larger Convolutional Language Models", "Poli et al.", 2023, "2302.10866"),
    "reference": "definition 3.1 and its filters, written out in torch: outputs and gradients within 1e-5",
    "departures": (
        "The vocabulary of hyena-153m is GPT-2's padded to 50,264, as in the authors' configuration; hyena is a small "
        "model of our own size over bytes.",
    ),
    "difference": 6.6e-7,
    "architecture": "hyena",
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.length": 256, "mixer.filter_width": 8},
}


@register("hyena", inputs=tokens(256), **FACTS)
def hyena() -> Decoder:
    """A small Hyena of order 2 over bytes, for contexts of up to 1,024."""
    return Decoder(
        vocabulary=256,
        depth=4,
        width=192,
        mixer=Hyena(order=2, length=1024),
        feed_forward=MLP(),
        norm=LayerNorm(epsilon=1e-5),
        tied=True,
        scan=False,  # so few layers compile as fast apart
    )


@register("hyena-153m", inputs=tokens(2048), **FACTS)
def hyena_153m() -> Decoder:
    """Hyena 153M of the Pile (table 4.2; safari's configuration, whose vocabulary is GPT-2's up to a multiple of 8)."""
    return Decoder(
        vocabulary=50_264,
        depth=18,
        width=864,
        mixer=Hyena(order=2, length=2048, features=33, frequency=14.0),
        feed_forward=MLP(hidden=1728),
        norm=LayerNorm(epsilon=1e-5),
        tied=True,
    )
