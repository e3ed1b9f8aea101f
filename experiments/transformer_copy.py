"""The Transformer (Vaswani et al. 2017, 1706.03762) learns to copy, or to reverse, sequences of random symbols.

    arch-jax train transformer_copy
    arch-jax train transformer_copy --set data.task=reverse

2 + 2 layers of width 64, post-norm with sinusoidal positions as in the paper, without dropout or label smoothing; 4 to
12 symbols of 16 kinds, drawn afresh in each step. A sequence counts if greedy decoding writes all of it.

Expected: all of the 512 validation sequences, copied as well as reversed (seeds 0 to 2 each), after 1,500
steps, in about 1 minute on 2 CPU cores; more than 99 % of them after 1,000 steps.
"""

import arch_jax

published = (
    # Not from the paper, which has no such task: a model that attends where it should must reach this.
    arch_jax.Published(
        99,
        "the task itself: what is not noise can be learned",
        tolerance=0,
        metric="exact_beam",
        seeds=3,
        unit="% of the sequences",
        factor=100,
        direction="at least",
    ),
)

#: Axes whose variants belong to the record.
recorded = ("task",)


def config() -> arch_jax.Experiment:
    """234,000 parameters, 64 sequences of 4 to 12 symbols a step."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "transformer-base",
            vocabulary=18,
            depth=2,
            width=64,
            dropout=0.0,
            initial_std=0.125,  # width^-1/2: embeddings are multiplied by width^1/2
            **{"mixer.heads": 4, "cross.heads": 4, "feed_forward.hidden": 256},
        ),
        objective=arch_jax.objective("sequence_to_sequence", beams=1),
        data=arch_jax.RandomPairs(task="copy", symbols=16, shortest=4, length=12, batch=64),
        optimizer=arch_jax.Optimizer(
            "adam", learning_rate=2e-3, schedule="cosine", warmup=200, final=0.02, b2=0.98, epsilon=1e-9
        ),
        steps=1500,
        evaluate_every=500,
        checkpoint_every=500,
        log_every=10,
        steps_per_dispatch=50,
    )


def ablate_task():
    """Copying, for which a target's position is its source's; and reversing, for which it is not."""
    for task in ("copy", "reverse"):
        yield {"data.task": task}
