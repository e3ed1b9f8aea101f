"""Llama 2 and 3: decoders with RoPE, RMSNorm, SwiGLU and (70B, and all of Llama 3) grouped-query attention.

For each layer (Touvron et al. 2023, 2302.13971, section 2.2):

    a = h + Attention(RMSNorm(h)),   queries and keys rotated by their positions
    h = a + W_2 (silu(W x) * V x),   x = RMSNorm(a)

without biases, with an output layer of its own.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.layers.transformer.positions import RoPE
from arch_jax.ops.attention.rope_scaling import Llama3Scaling
from arch_jax.registry import Paper, register

LLAMA2_PAPER = Paper("Llama 2: Open Foundation and Fine-Tuned Chat Models", "Touvron et al.", 2023, "2307.09288")
LLAMA3_PAPER = Paper("The Llama 3 Herd of Models", "Llama Team", 2024, "2407.21783")
FACTS = {
    "family": "transformer",
    "objective": "next_token",
    "inputs": tokens(4096),
    "architecture": "llama",
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.heads": 4,
        "mixer.kv_heads": 2,
        "feed_forward.hidden": 24,
    },
    "reference": "transformers LlamaForCausalLM: logits within 1e-5",
    "difference": 4e-7,
}


def llama_decoder(
    vocabulary: int,
    depth: int,
    width: int,
    heads: int,
    kv_heads: int,
    hidden: int,
    theta: float = 10_000.0,
    epsilon: float = 1e-5,
    stretched: float | None = None,
    tied: bool = False,
) -> Decoder:
    """A Llama of any size; `stretched` is the factor of its context over 8,192 tokens (Llama 3.1 and later)."""
    scaling = None if stretched is None else Llama3Scaling(stretched, 1.0, 4.0, 8192)
    return Decoder(
        vocabulary=vocabulary,
        depth=depth,
        width=width,
        mixer=Attention(heads=heads, kv_heads=kv_heads, rope=RoPE(theta=theta, scaling=scaling)),
        feed_forward=SwiGLU(hidden=hidden),
        norm=RMSNorm(epsilon=epsilon),
        tied=tied,
        scale_residual=False,
    )


@register("llama2-7b", parameters=6_738_415_616, paper=LLAMA2_PAPER, **FACTS)
def llama2_7b() -> Decoder:
    """Llama 2 7B: 32 layers, width 4096."""
    return llama_decoder(32_000, 32, 4096, heads=32, kv_heads=32, hidden=11_008)


@register("llama2-13b", parameters=13_015_864_320, paper=LLAMA2_PAPER, **FACTS)
def llama2_13b() -> Decoder:
    """Llama 2 13B: 40 layers, width 5120."""
    return llama_decoder(32_000, 40, 5120, heads=40, kv_heads=40, hidden=13_824)


@register("llama2-70b", parameters=68_976_648_192, paper=LLAMA2_PAPER, **FACTS)
def llama2_70b() -> Decoder:
    """Llama 2 70B: 80 layers, width 8192, 8 key-value heads."""
    return llama_decoder(32_000, 80, 8192, heads=64, kv_heads=8, hidden=28_672)


@register("llama3-8b", parameters=8_030_261_248, paper=LLAMA3_PAPER, **FACTS)
def llama3_8b() -> Decoder:
    """Llama 3 8B: 32 layers, width 4096, 8 key-value heads."""
    return llama_decoder(128_256, 32, 4096, heads=32, kv_heads=8, hidden=14_336, theta=500_000.0)


@register("llama3-70b", parameters=70_553_706_496, paper=LLAMA3_PAPER, **FACTS)
def llama3_70b() -> Decoder:
    """Llama 3 70B: 80 layers, width 8192, 8 key-value heads."""
    return llama_decoder(128_256, 80, 8192, heads=64, kv_heads=8, hidden=28_672, theta=500_000.0)


@register("llama3.1-8b", parameters=8_030_261_248, paper=LLAMA3_PAPER, **FACTS)
def llama3_1_8b() -> Decoder:
    """Llama 3.1 8B: Llama 3 8B with a context of 128 k."""
    return llama_decoder(128_256, 32, 4096, heads=32, kv_heads=8, hidden=14_336, theta=500_000.0, stretched=8.0)


@register("llama3.1-70b", parameters=70_553_706_496, paper=LLAMA3_PAPER, **FACTS)
def llama3_1_70b() -> Decoder:
    """Llama 3.1 70B: Llama 3 70B with a context of 128 k."""
    return llama_decoder(128_256, 80, 8192, heads=64, kv_heads=8, hidden=28_672, theta=500_000.0, stretched=8.0)


@register("llama3.1-405b", parameters=405_853_388_800, paper=LLAMA3_PAPER, **FACTS)
def llama3_1_405b() -> Decoder:
    """Llama 3.1 405B: 126 layers, width 16,384, 128 heads, 8 key-value heads."""
    return llama_decoder(128_256, 126, 16_384, heads=128, kv_heads=8, hidden=53_248, theta=500_000.0, stretched=8.0)


@register("llama3.2-1b", parameters=1_235_814_400, paper=LLAMA3_PAPER, **FACTS)
def llama3_2_1b() -> Decoder:
    """Llama 3.2 1B: 16 layers, width 2048, 32 heads, 8 key-value heads, tied embeddings."""
    settings = {"theta": 500_000.0, "stretched": 32.0, "tied": True}
    return llama_decoder(128_256, 16, 2048, heads=32, kv_heads=8, hidden=8192, **settings)


@register("llama3.2-3b", parameters=3_212_749_824, paper=LLAMA3_PAPER, **FACTS)
def llama3_2_3b() -> Decoder:
    """Llama 3.2 3B: 28 layers, width 3072, 24 heads, 8 key-value heads, tied embeddings."""
    settings = {"theta": 500_000.0, "stretched": 32.0, "tied": True}
    return llama_decoder(128_256, 28, 3072, heads=24, kv_heads=8, hidden=8192, **settings)
