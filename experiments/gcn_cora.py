"""Kipf & Welling's graph convolutional network (2017, 1609.02907) on Cora: 140 labelled papers of 2,708.

    arch-jax train gcn_cora

The paper's setting: the Planetoid split, words' rows normalised, 16 hidden units, dropout 0.5 on the input of both
layers, L2 of 5e-4 on the first, Adam at 0.01, 200 steps (without its early stopping). Expected: 81.4 % of the 1,000
test nodes (mean of seeds 0 to 9, from 80.1 to 82.4), in about 10 seconds on 2 CPU cores.
"""

import arch_jax

published = (
    arch_jax.Published(
        81.5,
        "1609.02907, table 2: mean of 100 runs",
        tolerance=1.0,
        metric="test_accuracy",
        seeds=10,
        unit="% of the test nodes",
        factor=100,
    ),
)


def config() -> arch_jax.Experiment:
    """23,040 parameters; the whole graph in every step."""
    return arch_jax.Experiment(
        model=arch_jax.create("gcn", classes=7),
        objective=arch_jax.objective("nodes", l2=5e-4),
        data=arch_jax.Nodes(source="cora"),
        optimizer=arch_jax.Optimizer("adam", learning_rate=0.01, schedule="constant", clip=None),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )


def ablate_depth():
    """One to four convolutions (the paper's appendix B)."""
    for depth in (0, 1, 2, 3):
        yield {"model.hidden": (16,) * depth}


def ablate_dropout():
    """Dropout on the input of each layer."""
    for share in (0.0, 0.5, 0.8):
        yield {"model.dropout": share}
