"""T5 (Raffel et al. 2019, 1910.10683) fills in corrupted spans of English text, byte by byte.

    arch-jax train t5_span

The paper's pre-training task (section 3.3.4) at a size for a CPU: 15 % of the bytes in spans of 3 on average, T5 v1.1's
architecture (relative buckets, GeGLU, no scaling of the scores) and Adafactor, on the documentation that comes with
CPython.

Expected: 1.742 nats a token of the target on the validation text (seed 0), sentinels included, in about 4 minutes on 2
CPU cores. Knowing the sentinels and the bytes' frequencies, and nothing of the text, gives 2.307. That is too short a
run to spell: greedy decoding still writes mostly spaces between the sentinels.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """0.9 M parameters, 32 windows of 70 bytes a step, of which 10 are to be filled in."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "t5-v1.1-small",
            vocabulary=261,
            depth=2,
            width=128,
            **{
                "mixer.heads": 4,
                "mixer.head_size": 32,
                "mixer.query_gain": 32**-0.5,
                "cross.heads": 4,
                "cross.head_size": 32,
                "cross.query_gain": 32**-0.5,
                "feed_forward.hidden": 256,
                "relative.initial_std": 128**-0.5,
            },
        ),
        objective=arch_jax.objective("sequence_to_sequence", beams=1),
        data=arch_jax.Spans(source="pydocs", tokenizer="bytes", length=64, density=0.15, mean_span=3.0, batch=32),
        optimizer=arch_jax.Optimizer("adafactor", learning_rate=0.02, schedule="linear", final=0.05, clip=None),
        steps=1500,
        evaluate_every=500,
        checkpoint_every=500,
        log_every=10,
        steps_per_dispatch=10,
    )


def ablate_mean_span():
    """Mean length of a span (the paper's table 7)."""
    for mean in (2.0, 3.0, 5.0, 10.0):
        yield {"data.mean_span": mean}


def ablate_density():
    """Fraction of the tokens that are corrupted (the paper's table 6)."""
    for share in (0.10, 0.15, 0.25, 0.50):
        yield {"data.density": share}
