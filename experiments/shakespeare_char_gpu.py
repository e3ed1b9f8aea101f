"""nanoGPT's character-level Shakespeare on a GPU: 6 layers, 6 heads, width 384, context 256, batch 64, 5000 steps.

    arch-jax train shakespeare_char_gpu

The setting is the one that nanoGPT gives for a GPU (config/train_shakespeare_char.py): GPT-2's architecture without
biases, dropout 0.2, AdamW with decay on matrices, 100 steps of warm-up and a cosine to a tenth, all in bfloat16.

Published: 1.4697 nats a character, the lowest of the estimates taken every 250 steps, each over 200 batches of random
windows (karpathy/nanoGPT, README). A model of this size has memorised the text long before step 5000: it is the
lowest `validation/loss` in `metrics.jsonl` that compares with it, and the checkpoint that is kept as the best.
Not run so far: on 2 CPU cores it would take half a day.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """10.7 M parameters, 64 windows of 256 characters a step."""
    model = arch_jax.create(
        "gpt2",
        vocabulary=65,
        depth=6,
        width=384,
        dropout=0.2,
        dtype="bfloat16",
        norm={"module": "layer_norm", "bias": False},
        **{
            "mixer.heads": 6,
            "mixer.bias": False,
            "feed_forward.bias": False,
            "feed_forward.activation": "gelu",
            "position.length": 256,
        },
    )
    return arch_jax.Experiment(
        model=model,
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(
            source="tinyshakespeare", tokenizer="characters", length=256, batch=64, sampling="random", validation=0.1
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
        steps=5000,
        evaluate_every=250,
        checkpoint_every=250,
        log_every=10,
        steps_per_dispatch=50,
    )
