"""LeNet-5 as published, on Fashion-MNIST (Xiao et al. 2017, 1708.07747).

    arch-jax train lenet_fashion --set data.source=idx:/usr/share/datasets/fashion-mnist

The data set is the four gzip files of Debian's package `dataset-fashion-mnist`, or those of its authors, in any folder.
Expected: 88.6 % of the 10,000 test images (mean of seeds 0 to 2), in one to two minutes each on 2 CPU cores.
"""

import arch_jax

published = (
    arch_jax.Published(
        87.6,
        "zalandoresearch/fashion-mnist, README: two convolutions and pooling give 87.6 to 93.4 %",
        tolerance=0.0,
        metric="accuracy",
        unit="% of the test images",
        factor=100,
        direction="at least",
    ),
)


def config() -> arch_jax.Experiment:
    """60,000 parameters, 128 images a step, 10 passes over the 60,000 training images."""
    return arch_jax.Experiment(
        model=arch_jax.create("lenet5"),
        objective=arch_jax.objective("classify", rubbish=10.0),
        data=arch_jax.Images(source="idx:/usr/share/datasets/fashion-mnist", batch=128, pad=2, low=-0.1, high=1.175),
        optimizer=arch_jax.Optimizer("adam", learning_rate=2e-3, schedule="cosine", final=0.01),
        steps=4690,
        evaluate_every=469,
        checkpoint_every=469,
    )
