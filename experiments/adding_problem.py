"""The adding problem (Hochreiter & Schmidhuber 1997): two marked numbers among 200, and their sum asked at the end.

    arch-jax ablate adding_problem --seeds 3

The constant prediction 1 has a mean squared error of 1/6 = .167. At 600 numbers Bai et al. (2018, 1803.01271, table 1)
have .164 with an LSTM, 5.3e-5 with a GRU and .177 with a plain recurrent network; here are 200, which takes half a
minute to three a seed on one CPU core. After 1,500 steps (seeds 0, 1, 2; the record has their curves):

    GRU                                 1.7e-4, 1.6e-4, 2.2e-4
    LSTM                                4.9e-4, 4.6e-4, 6.4e-4
    RNN, tanh, orthogonal               .174, .172, .176: nothing learned
    RNN, relu, identity (1504.00941)    1.1e-3, 8.8e-4, 3.3e-4

The figure "gradient" has the norm of the answer's gradient against how long ago a number was read, of the trained model
beside one at initialisation. At initialisation, at 0, 50, 100 and 199 numbers before the last: GRU 3e-1, 1e-7, 6e-13,
3e-23; LSTM 4e-1, 1e-3, 3e-5, 5e-8; RNN 8e-1, 3e-5, 4e-9, 3e-17; with relu and the identity 0.5 everywhere. After 100
steps the GRU's is 1e-2 all the way back: its gates have learned to keep.
"""

import arch_jax

published = (
    arch_jax.Published(
        5.3e-5,
        "1803.01271, table 1: GRU at 600 numbers (LSTM .164, RNN .177)",
        tolerance=1e-3,
        unit="mean squared error",
        direction="at most",
        behaviour=True,
    ),
)

#: Axes whose variants belong to the record.
recorded = ("cell",)


def config() -> arch_jax.Experiment:
    """A GRU of 64 units, 50 sequences of 200 numbers a step."""
    return arch_jax.Experiment(
        model=arch_jax.SequenceReader(width=64),
        objective=arch_jax.objective("regress"),
        data=arch_jax.AddingProblem(length=200, markers="anywhere", batch=50, validation=1000),
        optimizer=arch_jax.Optimizer("adam", learning_rate=2e-3, schedule="cosine", final=0.05),
        steps=1500,
        evaluate_every=250,
        checkpoint_every=500,
        log_every=10,
        steps_per_dispatch=50,
    ).overridden({"model.mixer": "gru"})


def ablate_cell():
    """The gated recurrences, the plain one, and the plain one that starts as an accumulator (1504.00941)."""
    for cell in ("gru", "lstm", "rnn"):
        yield {"model.mixer": cell}
    yield {"model.mixer": {"module": "rnn", "activation": "relu", "initial": "identity"}}
