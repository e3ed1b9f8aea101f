"""Every sequence mixer in one language model, at equal parameters and equal tokens, on Shakespeare's characters.

    arch-jax compare gpt:depth=2,width=96 gpt:depth=2,width=96,mixer=mamba gpt:depth=2,width=96,mixer=lstm \
        --on shakespeare_mixers --budget parameters=3e5 --seeds 2

Each model is `gpt` with another mixer: two pre-norm blocks with RMSNorm and SwiGLU, the width and the hidden units
chosen so that all have 296,640 to 302,400 parameters (mamba2 and rwkv7 with `mixer.head_size=16`). Validation loss in
nats a character after 500 steps (1.02 million characters), time a step and memory of the train program, seed 0, on one
CPU core:

    mlstm              1.680    158 ms    146 MB         s4                 1.808    166 ms    123 MB
    mamba              1.682    134 ms    109 MB         s6                 1.829    131 ms     82 MB
    gru                1.682     87 ms     70 MB         delta_net          1.834    136 ms    106 MB
    mamba2             1.693    220 ms    143 MB         attention          1.836     94 ms     67 MB
    gated_delta_net    1.704    156 ms    112 MB         s4d                1.844    105 ms     74 MB
    rwkv4              1.709    102 ms     87 MB         latent_attention   1.917     96 ms     68 MB
    rnn                1.709     76 ms     61 MB         retention          2.035    107 ms     83 MB
    lstm               1.712     82 ms     69 MB         performer          2.383    134 ms    110 MB
    hyena              1.722     93 ms     82 MB         linear_attention   2.390    139 ms     68 MB
    mamba_block        1.734    103 ms     94 MB
    slstm              1.742    136 ms     98 MB
    rwkv7              1.749    153 ms    110 MB

The last two have no position encoding. So few tokens, with one rate for all, show how fast each learns, not where it
would end; differences under about .02 are within the variation of seeds.
"""

import arch_jax

#: Mixer -> its settings, the model's width and the hidden units of its feed-forward parts, as `compare` scales them.
SIZES = {
    "linear_attention": ({"heads": 9}, 108, 306),
    "performer": ({"heads": 9}, 108, 306),
    "latent_attention": ({"heads": 3}, 109, 302),
    "retention": ({"heads": 4}, 96, 256),
    "rnn": ({}, 120, 320),
    "gru": ({}, 100, 288),
    "lstm": ({}, 96, 256),
    "slstm": ({"heads": 5}, 120, 336),
    "mlstm": ({"heads": 4}, 96, 288),
    "s4": ({}, 108, 288),
    "s4d": ({}, 111, 320),
    "s6": ({}, 116, 320),
    "mamba_block": ({}, 92, 256),
    "mamba": ({}, 96, 272),
    "mamba2": ({"head_size": 16}, 88, 284),
    "hyena": ({}, 102, 288),
    "rwkv4": ({}, 108, 306),
    "rwkv7": ({"head_size": 16}, 96, 312),
    "delta_net": ({"heads": 4}, 108, 303),
    "gated_delta_net": ({"heads": 4}, 104, 288),
}

#: Axes whose variants belong to the record.
recorded = ("mixer",)


def config() -> arch_jax.Experiment:
    """Attention with rotary positions; 16 windows of 128 characters a step."""
    sizes = {"depth": 2, "width": 108, "mixer.heads": 9, "mixer.kv_heads": 9, "feed_forward.hidden": 306}
    return arch_jax.Experiment(
        model=arch_jax.create("gpt", vocabulary=65, **sizes),
        objective=arch_jax.objective("next_token"),
        data=arch_jax.Text(source="tinyshakespeare", tokenizer="characters", length=128, batch=16),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, schedule="cosine", warmup=50, weight_decay=0.1),
        steps=500,
        evaluate_every=250,
        checkpoint_every=500,
        steps_per_dispatch=50,
    )


def ablate_mixer():
    """The other mixers, each in a model of about as many parameters."""
    for mixer, (settings, width, hidden) in SIZES.items():
        sizes = {"model.width": width, "model.feed_forward.hidden": hidden}
        yield {"model.mixer": {"module": mixer, **settings}, **sizes}
