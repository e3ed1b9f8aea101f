"""A graph convolutional network on Zachary's karate club (1977): which side does each member take?

    arch-jax train gcn_karate

Only the instructor's and the administrator's sides are known; nodes have no features but who they are (the paper's
appendix A). Nothing is downloaded; a second or two on a CPU. `film_embeddings.png` shows the club coming apart.
"""

import arch_jax


def config() -> arch_jax.Experiment:
    """34 nodes, 78 edges, 2 of the nodes labelled."""
    return arch_jax.Experiment(
        model=arch_jax.create("gcn", classes=2, hidden=(4,), dropout=0.0),
        objective=arch_jax.objective("nodes", l2=5e-4),
        data=arch_jax.Nodes(source="karate", multiple=8),
        optimizer=arch_jax.Optimizer("adam", learning_rate=0.01, schedule="constant", clip=None),
        steps=200,
        evaluate_every=40,
        checkpoint_every=100,
    )
