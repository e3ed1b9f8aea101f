"""Parity of a string of bits: an ability that attention and most linear recurrences lack.

    arch-jax reproduce formal_languages

Trained on 3 to 40 bits, tested on 40 to 256. A state must change its sign with every 1. sLSTM mixes its memory through
a matrix and can; mLSTM, Mamba and attention can't, since what they carry is only ever multiplied by numbers from 0 to 1
(or not at all); and the delta rule can as soon as its factors reach from -1 to 1 (Grazzi et al. 2024, 2411.12537):
1 - beta k k^T has the eigenvalue 1 - beta, beta in [0, 1] or in [0, 2].

The papers give 2 (accuracy - 1/2), which is 0 for guessing: sLSTM 1.000, mLSTM .087, Transformer .022 (2405.04517,
section 4.1); DeltaNet with eigenvalues in [0, 1] .017, in [-1, 1] 1.000 (2411.12537, table 2). Those trainings are
many times as long and ask for the parity of the whole string alone. Here it is asked after every bit in training, and
at the end in the test. Accuracy at 40 to 256 bits after 800 steps (seeds 0 to 2; 1 to 2 minutes each on one CPU core):

    sLSTM                             1.000  1.000   .996
    mLSTM                              .527   .475   .471
    attention, rotary                  .498   .514   .480
    Mamba                              .527   .473   .518
    DeltaNet, eigenvalues in [0, 1]    .551   .469   .469
    DeltaNet, eigenvalues in [-1, 1]   .826   .920   .943
"""

import arch_jax

published = (
    arch_jax.Published(
        100,
        "2405.04517, section 4.1: sLSTM, scaled accuracy 1.000 at 40 to 256 bits",
        tolerance=1,
        metric="accuracy_to_256",
        seeds=3,
        unit="% of the strings",
        factor=100,
        direction="at least",
    ),
)

#: Axes whose variants belong to the record.
recorded = ("mixer",)


def config() -> arch_jax.Experiment:
    """Two blocks of sLSTM of width 64, 64 strings of up to 40 bits a step."""
    return arch_jax.Experiment(
        model=arch_jax.create(
            "gpt", vocabulary=2, depth=2, width=64, mixer={"module": "slstm", "convolution": 0}, tied=False
        ),
        objective=arch_jax.objective("next_token", prompt="!", show_length=8, temperature=0.0),
        data=arch_jax.Parity(shortest=3, longest=40, tested=256, asked="every", batch=64, validation=512),
        optimizer=arch_jax.Optimizer("adamw", learning_rate=1e-3, schedule="cosine", warmup=100, weight_decay=0.1),
        steps=800,
        evaluate_every=200,
        checkpoint_every=400,
        log_every=20,
        steps_per_dispatch=50,
    )


def ablate_mixer():
    """sLSTM; mLSTM, attention and Mamba; the delta rule with eigenvalues in [0, 1] and in [-1, 1]."""
    yield {"model.mixer": {"module": "slstm", "convolution": 0}}
    yield {"model.mixer": {"module": "mlstm", "multiple": 8}}
    yield {"model.mixer": {"module": "attention", "heads": 4, "rope": "rope"}}
    yield {"model.mixer": "mamba"}
    for negative in (False, True):
        yield {"model.mixer": {"module": "delta_net", "heads": 2, "negative_eigenvalues": negative}}
