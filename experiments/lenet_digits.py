"""LeNet-5 as it was published, on scikit-learn's handwritten digits (1,797 images of 8 x 8 pixels).

    arch-jax train lenet_digits

The images are enlarged to 28 x 28 and padded to the 32 x 32 that LeNet-5 takes; a fifth of each class is held out.
Nothing is downloaded. Expected: 98 % of the held-out digits (seeds 0 to 4: 98.1, 98.3, 98.3, 97.8, 98.1), in 15
seconds on 2 CPU cores.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """60,000 parameters, 64 images a step, pixels from -0.1 (background) to 1.175 (foreground) as in the paper."""
    return arch_jax.Experiment(
        model=arch_jax.create("lenet5"),
        objective=arch_jax.objective("classify", rubbish=10.0),
        data=arch_jax.Images(source="digits", batch=64, resize=28, pad=2, low=-0.1, high=1.175),
        optimizer=arch_jax.Optimizer("adam", learning_rate=5e-3, schedule="cosine", final=0.01),
        steps=600,
        evaluate_every=200,
        checkpoint_every=200,
    )


def ablate_form():
    """The paper's own parts against their modern replacements: pooling, output, and connections of C3."""
    yield {}
    yield {"model.pool": "max_pool"}
    yield {"model.pool": "average_pool"}
    yield {"model.head": "linear"}
    yield {"model.connections": "full"}


def ablate_rubbish():
    """The constant class of equation 9, which keeps F6's outputs near the codes."""
    for j in (None, 1.0, 10.0):
        yield {"objective.rubbish": j}


def ablate_norm():
    """Batch norm (Ioffe & Szegedy 2015) between each convolution and its activation."""
    yield {"model.norm": None}
    yield {"model.norm": "batch_norm"}
