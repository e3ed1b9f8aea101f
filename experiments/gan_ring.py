"""The original GAN (Goodfellow et al. 2014, 1406.2661) on a ring of 8 Gaussians: how many modes does it find?

    arch-jax train gan_ring

Layers, losses, batch and measures are those of PacGAN's experiment (Lin et al. 2018, 1712.04086, section 4.1): centres
on the unit circle, standard deviation 0.01, 2,500 points judged, a mode found if any of them is within 3 standard
deviations. Theirs ran for 400,000 steps at the same learning rate; this one for 16,000, in 4 minutes on 2 CPU cores.
Expected: 8 of 8 modes, and 92 % of the points near one of them (seeds 0 to 2: 94, 92, 89).
"""

import arch_jax

published = (
    arch_jax.Published(
        6.3,
        "PacGAN, 1712.04086, table 1: 6.3 +- 0.5 after 400,000 steps",
        tolerance=0.5,
        metric="modes",
        unit="of 8 modes",
        direction="at least",
        behaviour=True,
    ),
    # V(D, G) at the optimum is -log 4 = -1.386 (1406.2661, theorem 1); alternating steps circle around it.
)


def config() -> arch_jax.Experiment:
    """890,003 parameters, 100 points a step."""
    return arch_jax.Experiment(
        model=arch_jax.create("gan"),
        objective=arch_jax.objective("adversarial"),
        data=arch_jax.Ring(modes=8, radius=1.0, std=0.01, batch=100),
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-4, schedule="constant", b1=0.8, clip=None),
        steps=16_000,
        evaluate_every=2_000,
        checkpoint_every=2_000,
        log_every=10,
        steps_per_dispatch=50,
    )


def ablate_saturating():
    """The game of equation 1 for both players, and the loss that the paper recommends for the generator."""
    yield {"objective.saturating": False}
    yield {"objective.saturating": True}


def ablate_discriminator_steps():
    """k of algorithm 1: steps of the discriminator for each of the generator."""
    for k in (1, 2, 5):
        yield {"objective.discriminator_steps": k}
