"""RWKV-4: a recurrent network that trains like a Transformer (Peng et al. 2023, 2305.13048).

A layer is time mixing and channel mixing, each a residual block with a LayerNorm in front; one more norm follows the
embedding:

    x_0 = LayerNorm(E[tokens])
    x_l = x_{l-1} + TimeMixing(LayerNorm(x_{l-1})),     x_{l+1} = x_l + ChannelMixing(LayerNorm(x_l))
    logits = LayerNorm(x_{2L}) W

so that the paper's depth L is half of the decoder's. Size (appendix B): 2 V D + 13 D^2 L + D (11 L + 4).
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.rwkv4 import RWKV4, RWKV4Channel
from arch_jax.layers.norms import LayerNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register

RWKV4_FACTS = {
    "family": "emerging",
    "objective": "next_token",
    "paper": Paper("RWKV: Reinventing RNNs for the Transformer Era", "Peng et al.", 2023, "2305.13048"),
    "inputs": tokens(1024),
    "architecture": "rwkv4",
    "shrink": {"vocabulary": 32, "depth": 4, "width": 16},
    "reference": "transformers RwkvForCausalLM: logits, gradients and decoding within 1e-5",
    "difference": 1e-6,
}


def rwkv4_decoder(layers: int, width: int, vocabulary: int = 50_277) -> Decoder:
    """RWKV-4 of any size: `layers` of the paper, each two blocks of the decoder."""
    return Decoder(
        vocabulary=vocabulary,
        depth=2 * layers,
        width=width,
        mixer=(RWKV4(), RWKV4Channel()),
        feed_forward=None,
        norm=LayerNorm(epsilon=1e-5),
        embedding_norm=True,
        embedding_std=1e-4,  # small, so that the norm after it lets it move fast at first (appendix F)
        tied=False,
    )


@register("rwkv4-169m", parameters=169_342_464, **RWKV4_FACTS)
def rwkv4_169m() -> Decoder:
    """RWKV-4 169M: 12 layers, width 768."""
    return rwkv4_decoder(12, 768)


@register("rwkv4-430m", parameters=430_397_440, **RWKV4_FACTS)
def rwkv4_430m() -> Decoder:
    """RWKV-4 430M: 24 layers, width 1024."""
    return rwkv4_decoder(24, 1024)


@register("rwkv4-1b5", parameters=1_515_106_304, **RWKV4_FACTS)
def rwkv4_1b5() -> Decoder:
    """RWKV-4 1.5B: 24 layers, width 2048."""
    return rwkv4_decoder(24, 2048)


@register("rwkv4-3b", parameters=2_984_627_200, **RWKV4_FACTS)
def rwkv4_3b() -> Decoder:
    """RWKV-4 3B: 32 layers, width 2560."""
    return rwkv4_decoder(32, 2560)


@register("rwkv4-7b", parameters=7_392_649_216, **RWKV4_FACTS)
def rwkv4_7b() -> Decoder:
    """RWKV-4 7B: 32 layers, width 4096."""
    return rwkv4_decoder(32, 4096)


@register("rwkv4-14b", parameters=14_148_597_760, **RWKV4_FACTS)
def rwkv4_14b() -> Decoder:
    """RWKV-4 14B: 40 layers, width 5120."""
    return rwkv4_decoder(40, 5120)
