"""BERT (Devlin et al. 2018, 1810.04805) on a Markov source: does it reach what the source's entropy allows?

    arch-jax reproduce bert_markov

The source is a random chain of 8 states with an entropy rate of 1.1329 nats a token; sequences have 32 tokens, and each
token is chosen with probability 0.15 and masked, replaced or kept 80/10/10. Two numbers are compared with it:

- The entropy rate h = H(x_t | x_{t-1}): each validation row's last token is masked, alone; all that is known is what
  came before it. "last_excess" is how far the model's loss is above -log P(x_t | x_{t-1}) of the same tokens.
- Under the corruption that it was trained on it sees both sides, so it can do better than h: a single token hidden
  between known ones has 2h - H(x_{t+1} | x_{t-1}) = 0.624 nats, and with its neighbours corrupted too, a predictor that
  knows chain and corruption expects 0.743. "excess" is how far the model's loss is above that predictor's on the same
  tokens, which forward and backward messages of the chain compute (`arch_jax/data/sequences/markov_chain.py`).

Seen with seeds 0 to 2: 0.28, 0.46 and 0.29 % above the entropy rate, 0.76, 0.76 and 1.12 % above the ideal predictor,
in 2.4 minutes each on one CPU core.
"""

import arch_jax

# The tolerance is the one that was asked for before there was a run: within 2 % of the source's entropy.
published = (
    arch_jax.Published(
        0,
        "the source's entropy rate: each row's last token, masked alone, against -log P(x_t | x_{t-1})",
        tolerance=2,
        metric="last_excess",
        seeds=3,
        unit="% above it",
        factor=100,
        direction="at most",
    ),
    arch_jax.Published(
        0,
        "the ideal predictor under the same corruption: forward and backward messages of the chain",
        tolerance=2,
        metric="excess",
        seeds=3,
        unit="% above it",
        factor=100,
        direction="at most",
    ),
)


def config() -> arch_jax.Experiment:
    """107,000 parameters, 64 sequences of 32 tokens a step, each token chosen independently with probability 0.15."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "bert-base",
            vocabulary=9,
            depth=2,
            width=64,
            types=0,
            pooler=False,
            following=False,
            dropout=0.0,
            **{"mixer.heads": 4, "feed_forward.hidden": 256, "position.length": 32},
        ),
        objective=arch_jax.objective("masked_token", selection="independent"),
        data=arch_jax.Markov(states=8, length=32, batch=64, validation=2048),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=3e-3, schedule="cosine", warmup=200, final=0.01),
        steps=5000,
        evaluate_every=1000,
        checkpoint_every=2000,
        log_every=10,
        steps_per_dispatch=50,
    )
