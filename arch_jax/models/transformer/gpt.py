"""GPT: decoder-only Transformers, in the form of GPT-2 (2019) and in their modern form.

GPT-2 (Radford et al. 2019, section 2.3) is, with h_0 = W_e[tokens] + W_p[positions] and for each layer

    a_l = h_{l-1} + Attention(LayerNorm(h_{l-1}))
    h_l = a_l + MLP(LayerNorm(a_l)),          MLP(x) = GELU_tanh(x W_1 + b_1) W_2 + b_2
    logits = LayerNorm(h_L) W_e^T

with weights drawn from N(0, 0.02) and those that write to the residual stream scaled by 1/sqrt(2 L).
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.attention import Attention
from arch_jax.layers.norms import LayerNorm, RMSNorm
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.layers.transformer.feed_forward import MLP, SwiGLU
from arch_jax.layers.transformer.positions import LearnedPosition, RoPE
from arch_jax.registry import Paper, register

GPT2_PAPER = Paper(
    "Language Models are Unsupervised Multitask Learners",
    "Radford et al.",
    2019,
    url="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
)
GPT2_FACTS = {
    "family": "transformer",
    "objective": "next_token",
    "paper": GPT2_PAPER,
    "inputs": tokens(1024),
    "architecture": "gpt2",
    "shrink": {"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 2, "position.length": 32},
    "reference": "transformers GPT2LMHeadModel: logits within 1e-5, ten AdamW steps within 1e-4",
    "departures": (
        "Dropout is off by default, since its rate belongs to the recipe; transformers' configuration has 0.1.",
        "No dropout on attention weights, which the blocked kernels never hold; dropout acts on the embeddings and on "
        "each part's output.",
    ),
    "difference": 4e-7,
    "no_gradient": {r"mixer/key/bias": "softmax does not change when all scores of a query move by the same amount"},
}


def gpt2_decoder(depth: int, width: int, heads: int) -> Decoder:
    """GPT-2 of any size; the published ones have heads of 64 dimensions."""
    return Decoder(
        vocabulary=50_257,
        depth=depth,
        width=width,
        mixer=Attention(heads=heads, bias=True),
        feed_forward=MLP(activation="gelu_tanh"),
        norm=LayerNorm(epsilon=1e-5),
        position=LearnedPosition(length=1024),
        tied=True,
    )


@register(
    "gpt",
    family="transformer",
    objective="next_token",
    paper=Paper("LLaMA: Open and Efficient Foundation Language Models", "Touvron et al.", 2023, "2302.13971"),
    inputs=tokens(256),
    shrink={"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 4, "mixer.kv_heads": 2},
    reference="transformers LlamaForCausalLM with tied embeddings: logits within 1e-5",
    departures=(
        "Not a published model: a small decoder of Llama's parts over bytes, with grouped-query attention and tied "
        "embeddings.",
    ),
    difference=4e-7,
)
def gpt() -> Decoder:
    """A small modern decoder over bytes: RoPE, RMSNorm, SwiGLU, grouped-query attention, tied embeddings."""
    return Decoder(
        vocabulary=256,
        depth=4,
        width=192,
        mixer=Attention(heads=6, kv_heads=2, rope=RoPE()),
        feed_forward=SwiGLU(),
        norm=RMSNorm(),
        tied=True,
        scan=False,  # so few layers compile as fast apart, and then share the masks of packed segments
    )


@register("gpt2", parameters=124_439_808, reproduces="Shakespeare characters (shakespeare_char)", **GPT2_FACTS)
def gpt2() -> Decoder:
    """GPT-2 small: 12 layers, width 768."""
    return gpt2_decoder(depth=12, width=768, heads=12)


@register("gpt2-medium", parameters=354_823_168, **GPT2_FACTS)
def gpt2_medium() -> Decoder:
    """GPT-2 medium: 24 layers, width 1024."""
    return gpt2_decoder(depth=24, width=1024, heads=16)


@register("gpt2-large", parameters=774_030_080, **GPT2_FACTS)
def gpt2_large() -> Decoder:
    """GPT-2 large: 36 layers, width 1280."""
    return gpt2_decoder(depth=36, width=1280, heads=20)


@register("gpt2-xl", parameters=1_557_611_200, **GPT2_FACTS)
def gpt2_xl() -> Decoder:
    """GPT-2 XL: 48 layers, width 1600."""
    return gpt2_decoder(depth=48, width=1600, heads=25)
