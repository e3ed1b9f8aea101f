"""DeltaNet and Gated DeltaNet as language models: pre-norm blocks with SwiGLU, as Llama's are.

Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (2406.06484), and Yang,
Kautz & Hatamizadeh 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (2412.06464). For each layer, with
the mixers of `layers.mixers.delta_net`,

    h' = h + mixer(RMSNorm(h)),   h'' = h' + SwiGLU(RMSNorm(h'))

The sizes are those that the papers name, with hidden units of 8/3 of the width, rounded up to a multiple of 256, and a
vocabulary of 32,000; no exact parameter count is published.
"""

from typing import Any

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.delta_net import DeltaNet, GatedDeltaNet
from arch_jax.layers.norms import RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.registry import Paper, register

_FACTS = {
    "family": "emerging",
    "objective": "next_token",
    "inputs": tokens(2048),
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.heads": 2,
        "mixer.head_size": 8,
        "feed_forward.hidden": 32,
    },
    "reference": "transformers Qwen3NextGatedDeltaNet and its delta rules: outputs within 1e-5",
    "departures": (
        "The papers give no vocabulary size and no exact hidden width: 32,000 tokens and 8/3 of the width, rounded up "
        "to a multiple of 256, are assumed, as in Llama.",
        "The hybrids with sliding-window attention are not registered; the mixers can be combined in any order.",
    ),
    "difference": 1.5e-6,
}
DELTA_NET_FACTS = _FACTS | {
    "paper": Paper(
        "Parallelizing Linear Transformers with the Delta Rule over Sequence Length", "Yang et al.", 2024, "2406.06484"
    ),
    "architecture": "delta-net",
}
GATED_DELTA_NET_FACTS = _FACTS | {
    "paper": Paper(
        "Gated Delta Networks: Improving Mamba2 with Delta Rule",
        "Yang, Kautz and Hatamizadeh",
        2024,
        "2412.06464",
    ),
    "architecture": "gated-delta-net",
    "shrink": _FACTS["shrink"] | {"mixer.value_size": 12},
}


def delta_decoder(depth: int, width: int, mixer: Any) -> Decoder:
    """A language model of delta networks, of any size."""
    return Decoder(
        vocabulary=32_000,
        depth=depth,
        width=width,
        mixer=mixer,
        feed_forward=SwiGLU(multiple=256),
        norm=RMSNorm(epsilon=1e-6),
        tied=False,
        scale_residual=False,
    )


@register("delta-net-340m", **DELTA_NET_FACTS)
def delta_net_340m() -> Decoder:
    """DeltaNet 340M: 24 layers, width 1024, heads of 128 dimensions."""
    return delta_decoder(24, 1024, DeltaNet(heads=8, head_size=128))


@register("delta-net-1.3b", **DELTA_NET_FACTS)
def delta_net_1_3b() -> Decoder:
    """DeltaNet 1.3B: 24 layers, width 2048, heads of 128 dimensions."""
    return delta_decoder(24, 2048, DeltaNet(heads=16, head_size=128))


@register("gated-delta-net-1.3b", **GATED_DELTA_NET_FACTS)
def gated_delta_net_1_3b() -> Decoder:
    """Gated DeltaNet 1.3B: 21 layers, width 2048; keys of 256 dimensions and values of 512 in 6 heads."""
    return delta_decoder(21, 2048, GatedDeltaNet(heads=6, head_size=256, value_size=512))
