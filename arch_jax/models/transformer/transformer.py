"""The Transformer (Vaswani et al. 2017, Attention Is All You Need, 1706.03762), base and big.

With x_0 = sqrt(d) E[tokens] + PE[positions], PE(p, 2i) = sin(p / 10000^(2i/d)), PE(p, 2i+1) = cos(the same):

    encoder layer   a = LayerNorm(x + SelfAttention(x)),     x' = LayerNorm(a + FFN(a))
    decoder layer   a = LayerNorm(y + SelfAttention(y)),     masked: a token sees only what came before
                    b = LayerNorm(a + CrossAttention(a, encoder's output)),     y' = LayerNorm(b + FFN(b))
    FFN(x) = max(0, x W_1 + b_1) W_2 + b_2,                  logits = y_L E^T

(section 3). Source, target and output share the table E (section 3.4). The projections of attention have no biases.
Trained with label smoothing 0.1, dropout 0.1 (big: 0.3) and Adam(0.9, 0.98, 1e-9) at the rate
d^-1/2 min(step^-1/2, step warmup^-3/2) with 4000 steps of warm-up (section 5.3): `schedule="rsqrt"`, whose highest rate
is (4000 d)^-1/2.
"""

from arch_jax.inputs import pairs
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.encoder_decoder import EncoderDecoder
from arch_jax.layers.transformer.feed_forward import MLP
from arch_jax.layers.transformer.positions import SinusoidalPosition
from arch_jax.registry import Paper, register

FACTS = {
    "family": "transformer",
    "objective": "sequence_to_sequence",
    "paper": Paper("Attention Is All You Need", "Vaswani et al.", 2017, "1706.03762"),
    "inputs": pairs(64, 64),
    "architecture": "transformer",
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.heads": 2,
        "cross.heads": 2,
        "feed_forward.hidden": 24,
    },
    "reference": "transformers MarianMTModel: logits within 1e-5, beam search token by token",
    "difference": 3e-7,
}


def transformer(vocabulary: int, depth: int, width: int, heads: int, hidden: int, dropout: float) -> EncoderDecoder:
    """A Transformer of any size, with variance-preserving initial weights."""
    return EncoderDecoder(
        vocabulary=vocabulary,
        depth=depth,
        width=width,
        mixer=Attention(heads=heads, initial_std=None),
        cross=CrossAttention(heads=heads, initial_std=None),
        feed_forward=MLP(hidden=hidden, activation="relu", initial_std=None),
        norm=LayerNorm(epsilon=1e-6),
        placement="post",
        position=SinusoidalPosition(),
        scale_embedding=True,
        dropout=dropout,
        initial_std=width**-0.5,
    )


@register("transformer-base", **FACTS)
def transformer_base() -> EncoderDecoder:
    """The base model: 6 + 6 layers, width 512, 8 heads, a shared vocabulary of 37,000 (the paper says 65 million)."""
    return transformer(37_000, 6, 512, heads=8, hidden=2048, dropout=0.1)


@register("transformer-big", **FACTS)
def transformer_big() -> EncoderDecoder:
    """The big model: 6 + 6 layers, width 1024, 16 heads, a shared vocabulary of 37,000 (the paper says 213 million)."""
    return transformer(37_000, 6, 1024, heads=16, hidden=4096, dropout=0.3)
