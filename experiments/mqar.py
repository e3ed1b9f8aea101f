"""Multi-query associative recall (Arora et al. 2023, Zoology, 2312.04927, figure 2): look-ups by content.

    arch-jax reproduce mqar

4 keys with values, then each key again among other tokens: its value is asked. Two layers of width 64 at 64 tokens
without position-wise parts, so that only the mixers differ; the paper reads attention 1.0, RWKV-4 .76 and Hyena .52 off
at this width and length. Mamba-2 and Gated DeltaNet are later than the paper; their authors report that they solve it.

Accuracy after 1,000 steps (seeds 0 to 2; 1 to 3 minutes each on one CPU core), where 25 % is one of the 4 values:

    attention         100   100   100 %
    Gated DeltaNet     99.7  26.1 100.0 %
    Mamba-2            26.3  66.7  26.9 %
    Hyena              25.4  34.2  26.2 %
    RWKV-4             25.2  25.6  25.2 %

At 25 % a model knows which values there were but not yet which key has which; the paper trains many times as long.
"""

import arch_jax

published = (
    arch_jax.Published(
        100,
        "2312.04927, figure 2: attention, width 64, 64 tokens",
        tolerance=1,
        metric="accuracy",
        seeds=3,
        unit="% of the queries",
        factor=100,
        direction="at least",
    ),
)

#: Axes whose variants belong to the record.
recorded = ("mixer",)


def config() -> arch_jax.Experiment:
    """Two layers of attention of width 64, 64 sequences of 64 tokens a step."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "gpt",
            vocabulary=256,
            depth=2,
            width=64,
            feed_forward=None,
            mixer={"module": "attention", "heads": 2, "rope": "rope", "initial_std": None},
            tied=False,
            initial_std=0.125,
        ),
        objective=arch_jax.objective("next_token", prompt="!", show_length=8, temperature=0.0),
        data=arch_jax.MultiQueryRecall(length=64, pairs=4, vocabulary=256, batch=64, validation=512),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=2e-3, schedule="cosine", warmup=100, weight_decay=0.1),
        steps=1000,
        evaluate_every=250,
        checkpoint_every=500,
        log_every=20,
        steps_per_dispatch=50,
    )


def ablate_mixer():
    """Attention, a long convolution, a recurrence with a fixed decay, and two with a state of one matrix a head."""
    yield {"model.mixer": {"module": "attention", "heads": 2, "rope": "rope", "initial_std": None}}
    yield {"model.mixer": {"module": "hyena", "length": 64}}
    yield {"model.mixer": "rwkv4"}
    yield {"model.mixer": {"module": "mamba2", "head_size": 32, "state": 64}}
    yield {"model.mixer": {"module": "gated_delta_net", "heads": 2}}
