"""ResNet-20 on CIFAR-10 as published (He et al. 2016, 1512.03385, section 4.2).

    arch-jax train resnet20_cifar10

The setting of the paper: 64,000 steps of 128 images, a rate of 0.1 divided by 10 at 32,000 and at 48,000, four pixels
of background around each image, of which a window is cut out, and half of them mirrored. The paper's decay of 1e-4 is
a part of the gradient and goes through the momentum of 0.9, which makes 1e-3 of it; here it does not. Pixels go from -2
to 2, a deviation of about 1, where the paper subtracts each pixel's mean.

Not run so far: on 2 CPU cores it would take a day, and CIFAR-10 was not at hand. A GPU needs some
minutes.
"""

import arch_jax

published = (
    arch_jax.Published(
        91.25,
        "1512.03385, table 6: ResNet-20, 8.75 % error on CIFAR-10",
        tolerance=0.5,
        metric="accuracy",
        unit="% of the test images",
        factor=100,
        direction="at least",
    ),
)


def config() -> arch_jax.Experiment:
    """270,000 parameters, 164 passes over 50,000 images."""
    return arch_jax.Experiment(
        model=arch_jax.create("resnet-cifar-20"),
        objective=arch_jax.objective("classify"),
        data=arch_jax.Images(
            source="tfds:cifar10", batch=128, low=-2.0, high=2.0, augment=arch_jax.Augmentation(flip=0.5, crop=4)
        ),
        optimizer=arch_jax.Optimizer(
            "sgd", learning_rate=0.1, schedule="steps", final=0.01, b1=0.9, weight_decay=1e-3, decay="all", clip=None
        ),
        steps=64_000,
        evaluate_every=2000,
        checkpoint_every=2000,
        steps_per_dispatch=100,
    )


def ablate_augmentation():
    """Augmentation: each of the paper's two, and later methods."""
    yield {"data.augment.crop": 0, "data.augment.flip": 0.0}
    yield {"data.augment.crop": 0}
    yield {}
    yield {"data.augment.cutmix": 1.0}
