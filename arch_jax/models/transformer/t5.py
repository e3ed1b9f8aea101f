"""T5 (Raffel et al. 2020, 1910.10683): every task as text to text, in v1.0 and v1.1.

For each layer (section 2.1), pre-norm with RMSNorm and without any bias:

    a = x + Attention(RMSNorm(x)),   scores q k^T + b[head, bucket(distance)], not divided by sqrt(d)
    x' = a + FFN(RMSNorm(a)),        FFN(x) = relu(x W_1) W_2

with one table b for all layers of a stack; cross-attention stands between the two in the decoder, without b. In v1.0
the output layer is the embedding table, and hidden states are multiplied by d^-1/2 before it. v1.1 (the "T5.1.1" of the
authors' released checkpoints) has GeGLU, FFN(x) = (gelu(x W) * x V) W_2 (Shazeer 2020, 2002.05202), an output layer of
its own, and no dropout in pre-training.

The vocabulary is 32,000 tokens and 100 sentinels, rounded up to 32,128.
"""

from arch_jax.inputs import pairs
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.cross_attention import CrossAttention
from arch_jax.layers.transformer.encoder_decoder import EncoderDecoder
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU
from arch_jax.layers.transformer.positions import RelativeBuckets
from arch_jax.registry import Paper, register

PAPER = Paper(
    "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer",
    "Raffel et al.",
    2020,
    "1910.10683",
)
SHRINK = {
    "vocabulary": 32,
    "depth": 2,
    "width": 16,
    "mixer.heads": 2,
    "mixer.head_size": 6,
    "cross.heads": 2,
    "cross.head_size": 6,
    "feed_forward.hidden": 24,
    "relative.longest": 20,
}
FACTS = {
    "family": "transformer",
    "objective": "sequence_to_sequence",
    "paper": PAPER,
    "inputs": pairs(512, 114),
    "shrink": SHRINK,
    "reference": "transformers T5ForConditionalGeneration: logits within 1e-5, beam search token by token",
    "departures": (
        "No dropout on attention weights nor inside the feed-forward part; it acts on the embeddings and on each "
        "part's output. The blocked kernels never hold the weights.",
    ),
}
V1_0 = FACTS | {"architecture": "t5", "difference": 6e-7}
V1_1 = FACTS | {
    "architecture": "t5-v1.1",
    "difference": 9e-7,
    "departures": (
        "Published in the authors' repository only, not in the paper: GeGLU, an output layer of its own, no dropout.",
    ),
}


def t5(depth: int, width: int, heads: int, hidden: int, head_size: int = 64, gated: bool = False) -> EncoderDecoder:
    """A T5 of any size; `gated` is v1.1."""
    attention = {"heads": heads, "head_size": head_size, "scale": 1.0, "initial_std": None}
    # The initial weights of the queries compensate for the missing 1/sqrt(head_size) of the scores.
    attention |= {"query_gain": head_size**-0.5}
    if gated:
        feed_forward = SwiGLU(hidden=hidden, activation="gelu_tanh", initial_std=None)
    else:
        feed_forward = MLP(hidden=hidden, activation="relu", bias=False, initial_std=None)
    return EncoderDecoder(
        vocabulary=32_128,
        depth=depth,
        width=width,
        mixer=Attention(**attention),
        cross=CrossAttention(**attention),
        feed_forward=feed_forward,
        norm=RMSNorm(epsilon=1e-6),
        relative=RelativeBuckets(buckets=32, longest=128, initial_std=width**-0.5),
        tied=not gated,
        scale_logits=not gated,
        dropout=0.0 if gated else 0.1,
        initial_std=1.0,
    )


@register("t5-small", parameters=60_506_624, **V1_0)
def t5_small() -> EncoderDecoder:
    """T5 small: 6 + 6 layers, width 512."""
    return t5(6, 512, heads=8, hidden=2048)


@register("t5-base", parameters=222_903_552, **V1_0)
def t5_base() -> EncoderDecoder:
    """T5 base: 12 + 12 layers, width 768."""
    return t5(12, 768, heads=12, hidden=3072)


@register("t5-large", parameters=737_668_096, **V1_0)
def t5_large() -> EncoderDecoder:
    """T5 large: 24 + 24 layers, width 1024."""
    return t5(24, 1024, heads=16, hidden=4096)


@register("t5-3b", parameters=2_851_598_336, **V1_0)
def t5_3b() -> EncoderDecoder:
    """T5 3B: 24 + 24 layers, width 1024, 32 heads of 128, hidden width 16,384."""
    return t5(24, 1024, heads=32, hidden=16_384, head_size=128)


@register("t5-11b", parameters=11_307_321_344, **V1_0)
def t5_11b() -> EncoderDecoder:
    """T5 11B: 24 + 24 layers, width 1024, 128 heads of 128, hidden width 65,536."""
    return t5(24, 1024, heads=128, hidden=65_536, head_size=128)


@register("t5-v1.1-small", parameters=76_961_152, **V1_1)
def t5_v1_1_small() -> EncoderDecoder:
    """T5 v1.1 small: 8 + 8 layers, width 512, 6 heads."""
    return t5(8, 512, heads=6, hidden=1024, gated=True)


@register("t5-v1.1-base", parameters=247_577_856, **V1_1)
def t5_v1_1_base() -> EncoderDecoder:
    """T5 v1.1 base: 12 + 12 layers, width 768."""
    return t5(12, 768, heads=12, hidden=2048, gated=True)


@register("t5-v1.1-large", parameters=783_150_080, **V1_1)
def t5_v1_1_large() -> EncoderDecoder:
    """T5 v1.1 large: 24 + 24 layers, width 1024."""
    return t5(24, 1024, heads=16, hidden=2816, gated=True)


@register("t5-v1.1-xl", parameters=2_849_757_184, **V1_1)
def t5_v1_1_xl() -> EncoderDecoder:
    """T5 v1.1 XL: 24 + 24 layers, width 2048, 32 heads."""
    return t5(24, 2048, heads=32, hidden=5120, gated=True)


@register("t5-v1.1-xxl", parameters=11_135_332_352, **V1_1)
def t5_v1_1_xxl() -> EncoderDecoder:
    """T5 v1.1 XXL: 24 + 24 layers, width 4096, 64 heads."""
    return t5(24, 4096, heads=64, hidden=10_240, gated=True)
