"""A small modern decoder (RoPE, RMSNorm, SwiGLU, grouped-query attention) on English text, byte by byte.

    arch-jax train

The text is the documentation that comes with CPython (`pydocs`, 466 kB), so nothing is downloaded. Validation documents
share no line of 40 or more characters with the training documents.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """1.6 M parameters, 8 windows of 256 bytes a step."""
    return arch_jax.Experiment(
        model=arch_jax.create("gpt"),
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(source="pydocs", tokenizer="bytes", length=256, batch=8),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, warmup=50, weight_decay=0.1, b2=0.98),
        steps=400,
        evaluate_every=100,
        checkpoint_every=100,
    )


def ablate_position():
    """What rotary positions are worth."""
    yield {"model.mixer.rope": "rope"}
    yield {"model.mixer.rope": None}


def ablate_kv_heads():
    """Multi-head, grouped-query and multi-query attention (2305.13245)."""
    for heads in (6, 2, 1):
        yield {"model.mixer.kv_heads": heads}


def ablate_encoding():
    """How the model knows positions: RoPE, nothing, a learned table, sines, ALiBi, T5's buckets, Shaw's vectors."""
    yield {"model.mixer.rope": "rope"}
    yield {"model.mixer.rope": None}
    yield {"model.mixer.rope": None, "model.position": {"module": "learned", "length": 256}}
    yield {"model.mixer.rope": None, "model.position": "sinusoidal", "model.scale_embedding": True}
    for relative in ("alibi", "relative_buckets", "shaw"):
        yield {"model.mixer.rope": None, "model.mixer.relative": relative}


def ablate_norm():
    """RMSNorm and LayerNorm, in front of each part."""
    for norm in ("rms_norm", "layer_norm"):
        yield {"model.norm": norm}


def ablate_placement():
    """Where the norms stand: before a part (2002.04745), after the sum (1706.03762), or on both sides of it."""
    for placement in ("pre", "post", "sandwich"):
        yield {"model.placement": placement}


def ablate_feed_forward():
    """SwiGLU and GeGLU (2002.05202) and the networks of two matrices, which have as many parameters."""
    yield {"model.feed_forward": "swiglu"}
    yield {"model.feed_forward": {"module": "swiglu", "activation": "gelu_tanh"}}
    for activation in ("relu", "gelu"):
        yield {"model.feed_forward": {"module": "mlp", "activation": activation, "bias": False}}


def ablate_mechanism():
    """Attention to all before, to the latest 64, sparse, in linear time, and latent; with a learned table."""
    position = {"model.position": {"module": "learned", "length": 256}}
    heads = {"heads": 6, "kv_heads": 2}
    yield {"model.mixer": {"module": "attention", **heads}} | position
    yield {"model.mixer": {"module": "attention", "window": 64, **heads}} | position
    for pattern in ({"module": "strided", "stride": 16}, {"module": "longformer", "window": 64, "global_tokens": 4}):
        yield {"model.mixer": {"module": "attention", "pattern": pattern, **heads}} | position
    for mechanism in ("linear_attention", "performer"):
        yield {"model.mixer": {"module": mechanism, **heads}} | position
    yield {"model.mixer": {"module": "latent_attention", "heads": 6, "kv_rank": 64}} | position
