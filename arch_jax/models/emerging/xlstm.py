"""xLSTM: blocks of mLSTM and sLSTM, and the leaner xLSTM 7B.

Beck et al. 2024, "xLSTM: Extended Long Short-Term Memory" (2405.04517). xLSTM[a:b] has a blocks of mLSTM for b of
sLSTM,

    mLSTM:   h' = h + MLSTM(LN(h))                               (figure 10: it widens before the memory)
    sLSTM:   h' = h + SLSTM(LN(h)),   h'' = h' + FFN(LN(h'))     (figure 9: it widens after; FFN is a GeGLU of 1.3)

with four heads each, norms without biases, and an output layer of its own. The counts are those of the authors' package
`xlstm`, which round to the published ones (table 2 of the paper).

xLSTM 7B (Beck et al. 2025, 2503.13427) has the mLSTM alone, without widening and convolution, before a SwiGLU in every
block, RMSNorm, and soft caps on gates and logits; it is the default configuration of transformers' `xlstm`.
"""

import math

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.mlstm import MLSTM
from arch_jax.layers.mixers.slstm import SLSTM
from arch_jax.layers.norms import LayerNorm, RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import SwiGLU
from arch_jax.registry import Paper, register

XLSTM_FACTS = {
    "family": "emerging",
    "objective": "next_token",
    "paper": Paper("xLSTM: Extended Long Short-Term Memory", "Beck et al.", 2024, "2405.04517"),
    "inputs": tokens(2048),
    "architecture": "xlstm",
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 2, "mixer.multiple": 8},
    "reference": "xlstm's xLSTMLMModel: logits within 1e-5",
    "departures": ("Parameter counts are those of the authors' package, which round to the published ones.",),
    "difference": 2.3e-6,
}
XLSTM_7_1_FACTS = XLSTM_FACTS | {
    "shrink": {
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer": (MLSTM(heads=2, multiple=8), SLSTM(heads=2)),
        "feed_forward": (None, SwiGLU(hidden=24, activation="gelu")),
    },
    "no_gradient": {r"mixer/bias_input": "what opens an sLSTM's input gate at every token scales c and n alike"},
}


#: The blocks that are sLSTM in the published xLSTM[7:1], counted from 0, by depth.
SLSTM_AT = {24: (3, 20), 48: (3, 5, 7, 40, 42, 44)}


def xlstm_decoder(depth: int, width: int, slstm_at: tuple[int, ...] = ()) -> Decoder:
    """An xLSTM of any size, with sLSTM in the blocks of these numbers and mLSTM in the others."""
    mixer, feed_forward = MLSTM(heads=4), None
    if slstm_at:
        hidden = math.ceil(1.3 * width / 64) * 64
        behind = SwiGLU(hidden=hidden, activation="gelu", initial_std=math.sqrt(2 / (5 * width)))
        cells = {i: SLSTM(heads=4, depth_share=i / max(depth - 1, 1)) for i in slstm_at}
        feed_forward = tuple(behind if i in cells else None for i in range(depth))
        mixer = tuple(cells.get(i, mixer) for i in range(depth))
    return Decoder(
        vocabulary=50_304,
        depth=depth,
        width=width,
        mixer=mixer,
        feed_forward=feed_forward,
        norm=LayerNorm(bias=False),
        tied=False,
        initial_std=math.sqrt(2 / (5 * width)),
    )


@register("xlstm-1-0-125m", parameters=163_806_144, **XLSTM_FACTS)
def xlstm_1_0_125m() -> Decoder:
    """xLSTM[1:0] 125M: 24 blocks of mLSTM, width 768."""
    return xlstm_decoder(depth=24, width=768)


@register("xlstm-1-0-350m", parameters=409_290_112, **XLSTM_FACTS)
def xlstm_1_0_350m() -> Decoder:
    """xLSTM[1:0] 350M: 48 blocks of mLSTM, width 1024."""
    return xlstm_decoder(depth=48, width=1024)


@register("xlstm-1-0-760m", parameters=840_427_392, **XLSTM_FACTS)
def xlstm_1_0_760m() -> Decoder:
    """xLSTM[1:0] 760M: 48 blocks of mLSTM, width 1536."""
    return xlstm_decoder(depth=48, width=1536)


@register("xlstm-1-0-1.3b", parameters=1_422_559_616, **XLSTM_FACTS)
def xlstm_1_0_1_3b() -> Decoder:
    """xLSTM[1:0] 1.3B: 48 blocks of mLSTM, width 2048."""
    return xlstm_decoder(depth=48, width=2048)


@register("xlstm-7-1-125m", parameters=163_690_928, **XLSTM_7_1_FACTS)
def xlstm_7_1_125m() -> Decoder:
    """xLSTM[7:1] 125M: 24 blocks, two of them sLSTM, width 768."""
    return xlstm_decoder(depth=24, width=768, slstm_at=SLSTM_AT[24])


@register("xlstm-7-1-350m", parameters=408_436_048, **XLSTM_7_1_FACTS)
def xlstm_7_1_350m() -> Decoder:
    """xLSTM[7:1] 350M: 48 blocks, six of them sLSTM, width 1024."""
    return xlstm_decoder(depth=48, width=1024, slstm_at=SLSTM_AT[48])


@register("xlstm-7-1-760m", parameters=839_736_144, **XLSTM_7_1_FACTS)
def xlstm_7_1_760m() -> Decoder:
    """xLSTM[7:1] 760M: 48 blocks, six of them sLSTM, width 1536."""
    return xlstm_decoder(depth=48, width=1536, slstm_at=SLSTM_AT[48])


@register("xlstm-7-1-1.3b", parameters=1_420_065_104, **XLSTM_7_1_FACTS)
def xlstm_7_1_1_3b() -> Decoder:
    """xLSTM[7:1] 1.3B: 48 blocks, six of them sLSTM, width 2048."""
    return xlstm_decoder(depth=48, width=2048, slstm_at=SLSTM_AT[48])


@register(
    "xlstm-7b",
    family="emerging",
    objective="next_token",
    paper=Paper("xLSTM 7B: A Recurrent LLM for Fast and Efficient Inference", "Beck et al.", 2025, "2503.13427"),
    parameters=6_865_424_896,
    inputs=tokens(8192),
    shrink={
        "vocabulary": 32,
        "depth": 2,
        "width": 16,
        "mixer.heads": 2,
        "mixer.key_size": 4,
        "mixer.value_size": 8,
        "feed_forward.hidden": 48,
    },
    reference="transformers xLSTMForCausalLM: logits within 1e-5",
    difference=2.8e-6,
)
def xlstm_7b() -> Decoder:
    """xLSTM 7B: 32 blocks, width 4096, 8 heads with keys of 256 and values of 512 dimensions."""
    small = math.sqrt(2 / (5 * 4096))
    return Decoder(
        vocabulary=50_304,
        depth=32,
        width=4096,
        mixer=MLSTM(
            heads=8,
            expansion=None,
            convolution=0,
            block_size=None,
            key_size=256,
            value_size=512,
            gate_softcap=15.0,
            input_bias=-10.0,
            norm_epsilon=1e-6,
        ),
        feed_forward=SwiGLU(hidden=10_944, initial_std=small),
        norm=RMSNorm(epsilon=1e-6),
        tied=False,
        initial_std=small,
        logit_softcap=30.0,
    )
