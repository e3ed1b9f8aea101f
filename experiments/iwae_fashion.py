"""Importance-weighted autoencoders (Burda et al. 2016, 1509.00519) on Fashion-MNIST, pixels drawn as 0 or 1.

    arch-jax ablate iwae_fashion --seeds 2

The paper's figures are for MNIST: more draws in the bound give a better model there.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """Two layers of 200 tanh units and 50 latent variables, as in the paper; 8 passes over 60,000 pictures."""
    return arch_jax.Experiment(
        model=arch_jax.create("vae", hidden=(200, 200), latent=50),
        objective=arch_jax.objective("variational", bound="importance", draws=1, binarised=True, evaluation_draws=50),
        data=arch_jax.Images(source="idx:/usr/share/datasets/fashion-mnist", batch=100),
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-3, epsilon=1e-4, schedule="constant"),
        steps=4800,
        evaluate_every=2400,
        checkpoint_every=2400,
        steps_per_dispatch=100,
    )


def ablate_draws():
    """k draws in the bound that is minimised; every one is held against the bound of 50."""
    for draws in (1, 5, 50):
        yield {"objective.draws": draws}
