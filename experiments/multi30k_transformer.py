"""A small Transformer (Vaswani et al. 2017, 1706.03762) translates captions of pictures from English to German.

arch-jax train multi30k_transformer
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """2.4 M parameters, 64 pairs of up to 28 tokens a step, 6 times over the corpus."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "transformer-base",
            vocabulary=4002,
            depth=2,
            width=192,
            initial_std=192**-0.5,  # width^-1/2: embeddings are multiplied by width^1/2
            **{"mixer.heads": 6, "cross.heads": 6, "feed_forward.hidden": 512},
        ),
        objective=arch_jax.objective("sequence_to_sequence", label_smoothing=0.1, beams=4, length_penalty=0.6),
        data=arch_jax.Multi30k(direction="en-de", tokenizer="bpe:4000", length=28, batch=64),
        optimizer=arch_jax.Optimizer(
            "adam", learning_rate=1.5e-3, schedule="cosine", warmup=400, final=0.02, b2=0.98, epsilon=1e-9
        ),
        steps=2520,
        evaluate_every=840,
        checkpoint_every=840,
        log_every=10,
        steps_per_dispatch=10,
    )
