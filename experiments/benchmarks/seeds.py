"""Eight seeds of the default experiment as one program, against one seed, and against eight one after another.

    python experiments/benchmarks/seeds.py [ROUNDS] [SEEDS]

On a GPU or TPU this is what `arch-jax ablate` does by itself. On a CPU it gains nothing (the matrix products are as
large as the cores can take already, and convolutions become slow grouped ones), and is done only with `--together N`.
"""

import sys

import jax
from _table import compare, publish, table

from arch_jax.experiment import load
from arch_jax.study.runs.vmapped import Seeds

STEPS = 10


def taken(count: int):
    """Takes `STEPS` steps with so many seeds in one program."""
    experiment = load("gpt")[0].overridden({"steps_per_dispatch": STEPS})
    corpus = experiment.data.load()
    program = Seeds(experiment, list(range(count)), corpus)
    iterators = [corpus.train(seed) for seed in range(count)]
    batches = jax.device_put(program.stack([[next(one) for _ in range(STEPS)] for one in iterators]))
    state = program.fresh()

    def run():
        nonlocal state
        state, metrics = program.run(state, batches, STEPS)
        jax.block_until_ready(metrics)

    return run


def main() -> None:
    """Prints a table and writes it to `results/seeds-PLATFORM.txt`."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 8
    one, together = taken(1), taken(count)

    def after_another():
        for _ in range(count):
            one()

    names = {"1 seed": one, f"{count} seeds as one": together, f"{count} seeds one after another": after_another}
    device = jax.devices()[0]
    title = f"Training steps of the default experiment on {device.device_kind} ({device.platform})"
    text = table(title, compare(names, rounds), STEPS, "milliseconds a step of all seeds", "1 seed")
    publish(f"seeds-{device.platform}", text)


if __name__ == "__main__":
    main()
