"""An experiment for another number of steps."""

import dataclasses

from arch_jax.experiment import Experiment


def lasting(experiment: Experiment, steps: int) -> Experiment:
    """The experiment for another number of steps, its schedule and its evaluations rescaled to them."""
    if steps == experiment.steps:
        return experiment
    stretch = lambda n: max(1, round(n * steps / experiment.steps))
    settle = lambda one: dataclasses.replace(one, horizon=None, warmup=stretch(one.warmup) if one.warmup else 0)
    one = experiment.optimizer
    return dataclasses.replace(
        experiment,
        steps=steps,
        optimizer=tuple(map(settle, one)) if isinstance(one, tuple) else settle(one),
        evaluate_every=stretch(experiment.evaluate_every),
        checkpoint_every=stretch(experiment.checkpoint_every),
        log_every=min(experiment.log_every, steps),
    )
