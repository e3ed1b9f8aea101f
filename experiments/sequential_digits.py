"""Sequential digits: handwritten digits read pixel by pixel (Le et al. 2015, 1504.00941, section 4.2), by S4.

    arch-jax ablate sequential_digits --seeds 3

scikit-learn's digits of 8 x 8 pixels are 64 numbers, one after another; the published 99.63 % of S4 (2111.00396, table
6) is of MNIST's 784, where an LSTM has 98.9. Nothing is downloaded. Two residual blocks of width 64, and the mean over
time; accuracy on the 359 held-out digits after 1,000 steps, in a minute or two on one CPU core:

    S4      98.3, 97.5, 98.6 % (seeds 0, 1, 2)
    S4D     98.1, 97.2, 97.2 %
    GRU     96.1, 97.2, 96.9 %
    LSTM    95.5, 95.5, 95.8 %
    RNN     89.4, 88.6, 83.8 %
"""

import arch_jax

published = (
    arch_jax.Published(
        99.63,
        "2111.00396, table 6: S4 on sequential MNIST, 28 x 28 pixels (LSTM 98.9)",
        tolerance=2.5,
        metric="accuracy",
        unit="% of the held-out digits",
        factor=100,
        direction="at least",
        behaviour=True,
    ),
)

#: Axes whose variants belong to the record.
recorded = ("mixer",)


def config() -> arch_jax.Experiment:
    """Two layers of S4 of width 64, 64 images of 64 pixels a step."""
    return arch_jax.Experiment(
        model=arch_jax.SequenceReader(
            outputs=10, depth=2, width=64, residual=True, pooling="mean", dropout=0.1, scan=False
        ),
        objective=arch_jax.objective("classify"),
        data=arch_jax.Images(source="digits", batch=64),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=4e-3, schedule="cosine", warmup=50, weight_decay=0.01),
        steps=1000,
        evaluate_every=250,
        checkpoint_every=500,
        log_every=10,
        steps_per_dispatch=50,
    ).overridden({"model.mixer": {"module": "s4", "state": 32}, "model.norm": "layer_norm"})


def ablate_mixer():
    """S4, its diagonal, and the recurrences with the same blocks around them."""
    yield {"model.mixer": {"module": "s4", "state": 32}}
    yield {"model.mixer": {"module": "s4d", "state": 32}}
    for cell in ("lstm", "gru", "rnn"):
        yield {"model.mixer": cell}
