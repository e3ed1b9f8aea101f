"""Mamba-2: Mamba with one decay for each head, and therefore computed by matrix products.

Dao and Gu (2405.21060): "state space duality". Every layer is x_l = x_{l-1} + Mamba2(RMSNorm(x_{l-1})), and within it
(figure 6, right: all projections in parallel, from x)

    x', B, C = silu(conv(x W_x | x W_B | x W_C)),   z = x W_z,   Delta = softplus(x W_Delta + b_Delta)
    S_t = exp(Delta_t A) S_{t-1} + B_t (Delta_t x'_t)^T                      (for each head of 64 channels)
    y = norm((S_t^T C_t + D x'_t) * silu(z)) W_out

with states of 128 numbers a channel. The sizes are those of the published models; the vocabulary is that of GPT-NeoX,
padded to a multiple of 16.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.ssm.mamba2 import Mamba2
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register

FACTS = {
    "family": "ssm",
    "objective": "next_token",
    "paper": Paper(
        "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space Duality",
        "Dao and Gu",
        2024,
        "2405.21060",
    ),
    "inputs": tokens(1024),
    "architecture": "mamba2",
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.head_size": 8,
        "mixer.state": 4,
        "mixer.groups": 2,
        "mixer.chunk": 4,
    },
    "reference": "transformers Mamba2ForCausalLM: logits within 1e-5, greedy decoding token by token",
    "difference": 5e-7,
}


def mamba2_decoder(depth: int, width: int) -> Decoder:
    """Mamba-2 of any size."""
    return Decoder(
        vocabulary=50_288,
        depth=depth,
        width=width,
        mixer=Mamba2(),
        feed_forward=None,
        norm=RMSNorm(epsilon=1e-5),
        tied=True,
    )


@register("mamba2-130m", parameters=128_989_632, **FACTS)
def mamba2_130m() -> Decoder:
    """Mamba-2 of 130M parameters: 24 layers, width 768."""
    return mamba2_decoder(depth=24, width=768)


@register("mamba2-370m", parameters=368_346_624, **FACTS)
def mamba2_370m() -> Decoder:
    """Mamba-2 of 370M parameters: 48 layers, width 1024."""
    return mamba2_decoder(depth=48, width=1024)


@register("mamba2-780m", parameters=780_161_280, **FACTS)
def mamba2_780m() -> Decoder:
    """Mamba-2 of 780M parameters: 48 layers, width 1536."""
    return mamba2_decoder(depth=48, width=1536)


@register("mamba2-1.3b", parameters=1_343_757_312, **FACTS)
def mamba2_1_3b() -> Decoder:
    """Mamba-2 of 1.3B parameters: 48 layers, width 2048."""
    return mamba2_decoder(depth=48, width=2048)


@register("mamba2-2.7b", parameters=2_702_599_680, **FACTS)
def mamba2_2_7b() -> Decoder:
    """Mamba-2 of 2.7B parameters: 64 layers, width 2560."""
    return mamba2_decoder(depth=64, width=2560)
