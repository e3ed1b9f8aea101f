"""nanoGPT's character-level Shakespeare on a CPU: 4 layers, 4 heads, width 128, context 64, batch 12, 2000 steps.

    arch-jax train shakespeare_char

The setting is the one that nanoGPT gives for a CPU: GPT-2's architecture without biases, AdamW with decay on
matrices, 100 steps of warm-up and a cosine to a tenth. Expected: 1.91 nats a character over the whole validation text,
in about 2 minutes on 2 CPU cores. nanoGPT's own 1.88 is one estimate over 240 random windows.
"""

import arch_jax

published = (
    arch_jax.Published(
        1.88, "karpathy/nanoGPT, README: one estimate over 240 random windows", tolerance=0.05, unit="nats a character"
    ),
)


def config() -> arch_jax.Experiment:
    """0.8 M parameters, 12 windows of 64 characters a step."""
    model = arch_jax.create(
        "gpt2",
        vocabulary=65,
        depth=4,
        width=128,
        norm={"module": "layer_norm", "bias": False},
        **{
            "mixer.heads": 4,
            "mixer.bias": False,
            "feed_forward.bias": False,
            "feed_forward.activation": "gelu",
            "position.length": 64,
        },
    )
    return arch_jax.Experiment(
        model=model,
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(
            source="tinyshakespeare", tokenizer="characters", length=64, batch=12, sampling="random", validation=0.1
        ),
        optimizer=arch_jax.Optimizer(
            "adamw",
            learning_rate=1e-3,
            schedule="cosine",
            warmup=100,
            final=0.1,
            b1=0.9,
            b2=0.99,
            weight_decay=0.1,
            clip=1.0,
        ),
        steps=2000,
        evaluate_every=500,
        checkpoint_every=500,
        steps_per_dispatch=50,
    )


def ablate_dropout():
    """Dropout, which nanoGPT sets to 0 for so short a run."""
    for share in (0.0, 0.1, 0.2):
        yield {"model.dropout": share}
