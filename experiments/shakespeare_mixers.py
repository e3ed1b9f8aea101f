"""Every sequence mixer in one language model, at equal parameters and equal tokens, on Shakespeare's characters.

    arch-jax reproduce shakespeare_mixers
    arch-jax compare gpt:depth=2,width=96 gpt:depth=2,width=96,mixer=mamba gpt:depth=2,width=96,mixer=lstm \
        --on shakespeare_mixers --budget parameters=3e5 --seeds 2

Each model is `gpt` with another mixer: two pre-norm blocks with RMSNorm and SwiGLU, the width and the hidden units
chosen so that all have 296,640 to 302,400 parameters (mamba2 and rwkv7 with `mixer.head_size=16`). Validation loss in
nats a character after 500 steps (1.02 million characters), seeds 0 to 2, and time a step on one CPU core:

    mlstm            1.680 1.666 1.679  127 ms      rwkv7            1.752 1.769 1.767   95 ms
    mamba            1.682 1.667 1.678   95 ms      s4               1.807 1.825 1.827  104 ms
    gru              1.682 1.676 1.692   45 ms      attention        1.834 1.806 1.827   64 ms
    mamba2           1.692 1.682 1.693  154 ms      s6               1.829 1.833 1.841   80 ms
    gated_delta_net  1.707 1.693 1.704  110 ms      delta_net        1.834 1.841 1.831  101 ms
    rwkv4            1.709 1.696 1.699   54 ms      s4d              1.844 1.849 1.857   55 ms
    rnn              1.709 1.698 1.712   41 ms      latent_attention 1.918 1.943 1.933   58 ms
    lstm             1.712 1.716 1.710   45 ms      retention        1.952 1.948 1.940   65 ms
    mamba_block      1.734 1.721 1.724   67 ms      performer        2.383 2.375 2.387   88 ms
    hyena            1.715 1.734 1.735   53 ms      linear_attention 2.390 2.382 2.385   62 ms
    slstm            1.743 1.735 1.747   96 ms

The last two have no position encoding. So few tokens, with one rate for all, show how fast each learns, not where it
would end.
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
