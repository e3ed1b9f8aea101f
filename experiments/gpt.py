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
