"""Plain networks get worse with depth, residual ones don't (He et al. 2016, 1512.03385, figure 6), on Fashion-MNIST.

    arch-jax reproduce resnet_vs_plain

The paper's networks of 20 and 56 layers for CIFAR-10 with a quarter of the channels.

Seen on the 10,000 test images after 900 steps, seeds 0 to 2: plain networks 84.7, 84.4 and 82.1 % with 20 layers and
75.8, 74.2 and 69.3 % with 56, residual ones 86.6, 85.8 and 86.8 % with 20 and 86.7, 87.7 and 87.3 % with 56. So the
plain network gets worse with depth, and the residual one does not. Published for CIFAR-10: an error of 8.75 and 6.97 %
for residual networks of 20 and 56 layers (table 6), and more for the plain one of 56 layers than for that of 20 (figure
6).
"""

import arch_jax

PLAIN_20 = {"model.shortcut": "none", "model.blocks": (3, 3, 3)}
PLAIN_56 = {"model.shortcut": "none", "model.blocks": (9, 9, 9)}
RESIDUAL_56 = {"model.blocks": (9, 9, 9)}

published = (
    arch_jax.Published(
        0,
        "1512.03385, figure 6: plain networks, 56 layers against 20: worse (no table)",
        tolerance=0,
        metric="accuracy",
        unit="points of accuracy",
        factor=100,
        direction="at most",
        behaviour=True,
        changes=PLAIN_56,
        against=PLAIN_20,
    ),
    arch_jax.Published(
        1.78,
        "1512.03385, table 6: residual networks, 56 layers (93.03 %) against 20 (91.25 %)",
        tolerance=1.78,
        metric="accuracy",
        unit="points of accuracy",
        factor=100,
        direction="at least",
        behaviour=True,
        changes=RESIDUAL_56,
        against={},
    ),
)
#: Axes whose variants belong to the record.
recorded = ("depth",)


def config() -> arch_jax.Experiment:
    """The CIFAR form with 20 layers and a quarter of the channels, on Fashion-MNIST."""
    return arch_jax.Experiment(
        model=arch_jax.create("resnet-cifar-20", width=4),
        objective=arch_jax.objective("classify"),
        data=arch_jax.Images(source="idx:/usr/share/datasets/fashion-mnist", batch=64),
        optimizer=arch_jax.Optimizer("sgd", learning_rate=0.1, schedule="cosine", warmup=50, weight_decay=1e-4),
        steps=900,
        evaluate_every=300,
        checkpoint_every=900,
        steps_per_dispatch=20,
    )


def ablate_depth():
    """20 and 56 layers, without shortcuts and with them."""
    for shortcut in ("none", "padding"):
        for blocks in (3, 9):
            yield {"model.shortcut": shortcut, "model.blocks": (blocks,) * 3}
