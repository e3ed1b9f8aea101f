"""Every sequence mixer in one language model, at equal parameters and equal tokens, on Shakespeare's characters.

    arch-jax compare gpt:depth=2 gpt:depth=2,mixer=mamba gpt:depth=2,mixer=lstm --on shakespeare_mixers \
        --budget parameters=3e5 --seeds 2

Each model is `gpt` with another mixer: pre-norm blocks with RMSNorm and SwiGLU, the width chosen so that all have about
as many parameters. So few tokens show how fast each learns, and not where it would end.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """16 windows of 128 characters a step."""
    return arch_jax.Experiment(
        model=arch_jax.create("gpt", vocabulary=65, depth=2, width=96),
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(source="tinyshakespeare", tokenizer="characters", length=128, batch=16),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, schedule="cosine", warmup=50, weight_decay=0.1),
        steps=500,
        evaluate_every=250,
        checkpoint_every=500,
        steps_per_dispatch=50,
    )
