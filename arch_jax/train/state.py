"""The training state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from arch_jax.experiment import Experiment
from arch_jax.layers import collections


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, beside its batch.

    Attributes:
      step: number of steps taken; an int32 scalar.
      parameters: player -> the parameters it owns.
      optimizer: player -> its Optax state.
      others: the model's collections other than parameters, such as batch statistics.
      average: exponential moving average of the parameters, by player, and of the collections that are averaged with
        them; empty without one.
      key: the run's random key; the key for step n is fold_in(key, n), so nothing random depends on stops.
    """

    step: Any
    parameters: dict[str, Any]
    optimizer: dict[str, Any]
    others: dict[str, Any]
    average: dict[str, Any]
    key: Any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables in the model's structure."""
        return {"params": merged(self.parameters), **self.others}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables for evaluation and sampling: the moving average if there is one."""
        if not self.average:
            return self.variables
        parameters = {name: part for name, part in self.average.items() if name in self.parameters}
        return {"params": merged(parameters), **collections.evaluated(self.others, self.average)}


def merged(parameters: dict[str, Any]) -> dict[str, Any]:
    """The players' parameters as one tree."""
    return {name: tree for part in parameters.values() for name, tree in part.items()}


def divided(experiment: Experiment, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tree of parameters as player -> the part it owns."""
    players = experiment.task.players
    return {
        player.name: {name: tree for name, tree in parameters.items() if player.owns is None or name in player.owns}
        for player in players
    }


def initial_state(experiment: Experiment, batch: Any, seed: Any = None) -> TrainState:
    """The state before the first step; a pure function of the experiment's seed (run it under `jit` or `eval_shape`).

    Args:
      experiment: determines model, objective, optimizers and seed.
      batch: one batch, for its shapes.
      seed: in place of the experiment's: an argument, so that one compiled program can serve many.
    """
    key = jax.random.key(experiment.seed if seed is None else seed)
    variables = experiment.task.init(jax.random.fold_in(key, 2**32 - 1), batch)
    parameters = divided(experiment, variables.pop("params"))
    transformations = {name: one.transformation(experiment.steps) for name, one in experiment.optimizers.items()}
    followed = parameters | collections.averaged(variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer={name: transformations[name].init(part) for name, part in parameters.items()},
        others=variables,
        average=jax.tree.map(jnp.copy, followed) if experiment.ema is not None else {},
        key=key,
    )
