"""Mamba: a language model of selective state spaces, without attention and without feed-forward parts.

Gu and Dao (2312.00752): every layer is one block (figure 3), x_l = x_{l-1} + Mamba(RMSNorm(x_{l-1})), and within it

    u = silu(conv(x W_in)),   z = x W_z
    B = u W_B,   C = u W_C,   Delta = softplus(u W_low W_Delta + b_Delta),   A = -exp(A_log)
    h_t = exp(Delta_t A) h_{t-1} + Delta_t B_t u_t                          (algorithm 2, S6)
    y = ((C_t h_t + D u_t) * silu(z)) W_out

with channels u twice as wide as x, states h of 16 numbers a channel, and a convolution over 4 tokens. The sizes are
those of the published models (section 4.2.2), trained on the Pile with the tokenizer of GPT-NeoX, whose 50,277 tokens
are padded to 50,280.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.ssm.mamba import Mamba
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register

FACTS = {
    "family": "ssm",
    "objective": "next_token",
    "paper": Paper(
        "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", "Gu and Dao", 2023, "2312.00752"
    ),
    "inputs": tokens(1024),
    "architecture": "mamba",
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.state": 4},
    "reference": "transformers MambaForCausalLM: logits within 1e-5, greedy decoding token by token",
    "difference": 3e-7,
}


def mamba_decoder(depth: int, width: int) -> Decoder:
    """Mamba of any size."""
    return Decoder(
        vocabulary=50_280,
        depth=depth,
        width=width,
        mixer=Mamba(),
        feed_forward=None,
        norm=RMSNorm(epsilon=1e-5),
        tied=True,
    )


@register("mamba-130m", parameters=129_135_360, **FACTS)
def mamba_130m() -> Decoder:
    """Mamba of 130M parameters: 24 layers, width 768."""
    return mamba_decoder(depth=24, width=768)


@register("mamba-370m", parameters=371_516_416, **FACTS)
def mamba_370m() -> Decoder:
    """Mamba of 370M parameters: 48 layers, width 1024."""
    return mamba_decoder(depth=48, width=1024)


@register("mamba-790m", parameters=793_204_224, **FACTS)
def mamba_790m() -> Decoder:
    """Mamba of 790M parameters: 48 layers, width 1536."""
    return mamba_decoder(depth=48, width=1536)


@register("mamba-1.4b", parameters=1_372_178_432, **FACTS)
def mamba_1_4b() -> Decoder:
    """Mamba of 1.4B parameters: 48 layers, width 2048."""
    return mamba_decoder(depth=48, width=2048)


@register("mamba-2.8b", parameters=2_768_345_600, **FACTS)
def mamba_2_8b() -> Decoder:
    """Mamba of 2.8B parameters: 64 layers, width 2560."""
    return mamba_decoder(depth=64, width=2560)
