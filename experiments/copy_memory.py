"""The copying memory task (Hochreiter & Schmidhuber 1997; 1511.06464, section 5.1): ten symbols, a long blank, again.

    arch-jax ablate copy_memory --seeds 3

Every place has a target, blanks too. A model that knows when to begin but not what has 10 ln 8 / (T + 20): .0945 nats a
token at the delay of T = 200 that is used here. Bai et al. (2018, 1803.01271, table 1) have T = 1,000, where that is
.0204: LSTM .0204, GRU .0197 and RNN .0202 have learned next to nothing of the symbols. After 1,000 steps, half a minute
to two on one CPU core, in nats and as a fraction of .0945, seeds 0 to 2:

    LSTM                 .0948    1.003 +- .001
    RNN                  .0950    1.005 +- .001
    GRU                  .0787     .83 +- .03
    S4D                  .0008     .008 +- .004: the target stands 210 tokens before, so a convolution is enough
    attention, rotary    .0008     .009 +- .003
"""

import math

import arch_jax

DELAY = 200
#: The loss of a model that says blank where blanks are asked and guesses the ten symbols: 10 ln 8 / (T + 20).
MEMORYLESS = 10 * math.log(8) / (DELAY + 20)

published = (
    arch_jax.Published(
        1.0,
        "1803.01271, table 1, T = 1000: LSTM .0204, GRU .0197, RNN .0202, of 10 ln 8 / (T + 20) = .0204",
        tolerance=0.05,
        unit="of what a model without memory pays",
        factor=1 / MEMORYLESS,
        behaviour=True,
    ),
)

#: Axes whose variants belong to the record.
recorded = ("cell",)


def config() -> arch_jax.Experiment:
    """One LSTM layer of 64 cells, 32 sequences of 220 tokens a step."""
    return arch_jax.Experiment(
        model=arch_jax.create("lstm", vocabulary=10, depth=1, width=64, tied=False),
        objective=arch_jax.objective("next_token", prompt="!", show_length=8, temperature=0.0, show_reach=True),
        data=arch_jax.CopyMemory(delay=DELAY, copied=10, symbols=8, batch=32, validation=256),
        optimizer=arch_jax.Optimizer("adam", learning_rate=1e-3, schedule="cosine", warmup=50),
        steps=1000,
        evaluate_every=250,
        checkpoint_every=500,
        log_every=10,
        steps_per_dispatch=50,
    )


def ablate_cell():
    """LSTM, GRU and RNN; a linear state space; and attention, which looks back where the symbols stood."""
    for cell in ("lstm", "gru", "rnn", "s4d"):
        yield {"model.mixer": cell}
    yield {"model.mixer": {"module": "attention", "heads": 2, "rope": "rope", "initial_std": None}}
