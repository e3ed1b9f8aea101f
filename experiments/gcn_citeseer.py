"""Kipf & Welling's graph convolutional network (2017, 1609.02907) on Citeseer: 120 labelled papers of 3,327.

    arch-jax train gcn_citeseer

The setting is that of gcn_cora. Expected: 70.5 % of the 1,000 test nodes (mean of seeds 0 to 9, from 69.3 to 71.7).
"""

import arch_jax

published = (
    arch_jax.Published(
        70.3,
        "1609.02907, table 2: mean of 100 runs",
        tolerance=1.0,
        metric="test_accuracy",
        seeds=10,
        unit="% of the test nodes",
        factor=100,
    ),
)


def config() -> arch_jax.Experiment:
    """59,344 parameters; the whole graph in every step."""
    return arch_jax.Experiment(
        model=arch_jax.create("gcn", classes=6),
        objective=arch_jax.objective("nodes", l2=5e-4),
        data=arch_jax.Nodes(source="citeseer"),
        optimizer=arch_jax.Optimizer("adam", learning_rate=0.01, schedule="constant", clip=None),
        steps=200,
        evaluate_every=50,
        checkpoint_every=100,
    )
