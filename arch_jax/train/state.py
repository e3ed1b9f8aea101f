"""The training state."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from arch_jax.experiment import Experiment
from arch_jax.layers import collections
from arch_jax.ops.precision import at_least_float32, like


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, beside its batch.

    Attributes:
      step: number of steps taken; an int32 scalar.
      parameters: player -> the parameters it owns.
      optimizer: player -> its Optax state.
      others: the model's collections other than parameters, such as batch statistics.
      average: exponential moving average of the parameters, by player, and of the collections that are averaged with
        them, in at least float32; empty without one.
      key: the run's random key; the key for step n is fold_in(key, n), so nothing random depends on stops.
      frozen: hash -> variables of each frozen part of the objective; no step changes them, no checkpoint holds them.
    """

    step: Any
    parameters: dict[str, Any]
    optimizer: dict[str, Any]
    others: dict[str, Any]
    average: dict[str, Any]
    key: Any
    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables as the objective takes them."""
        return {"params": merged(self.parameters), **self.others, **self._held}

    @property
    def _held(self) -> dict[str, Any]:
        return {"frozen": self.frozen} if self.frozen else {}

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables for evaluation and sampling: the moving average if there is one."""
        if not self.average:
            return self.variables
        parameters = {name: part for name, part in self.average.items() if name in self.parameters}
        followed = like(parameters, self.parameters)
        return {"params": merged(followed), **collections.evaluated(self.others, self.average), **self._held}


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


@flax.struct.dataclass
class Given:
    """Arrays that a run gets from elsewhere.

    Attributes:
      frozen: hash -> variables of the objective's frozen parts.
      start: path -> the weights that the run starts from, where it does not start afresh.
    """

    frozen: dict[str, Any] = flax.struct.field(default_factory=dict)
    start: dict[str, Any] = flax.struct.field(default_factory=dict)


NOTHING = Given()


def initial_state(experiment: Experiment, batch: Any, seed: Any = None, given: Given = NOTHING) -> TrainState:
    """The state before the first step; a pure function of the experiment's seed (run it under `jit` or `eval_shape`).

    Args:
      experiment: determines model, objective, optimizers and seed.
      batch: one batch, for its shapes.
      seed: in place of the experiment's: an argument, where one compiled program is to serve many.
      given: frozen parts, and weights to start from.
    """
    key = jax.random.key(experiment.seed if seed is None else seed)
    held = ({"frozen": given.frozen},) if given.frozen else ()
    variables = with_start(experiment.task.init(jax.random.fold_in(key, 2**32 - 1), batch, *held), given.start)
    parameters = divided(experiment, variables.pop("params"))
    transformations = {name: one.transformation(experiment.steps) for name, one in experiment.optimizers.items()}
    followed = parameters | collections.averaged(variables)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        optimizer={name: transformations[name].init(part) for name, part in parameters.items()},
        others=variables,
        average=jax.tree.map(jnp.copy, at_least_float32(followed)) if experiment.ema is not None else {},
        key=key,
        frozen=given.frozen,
    )


def with_start(variables: Any, start: dict[str, Any]) -> dict[str, Any]:
    """Fresh variables with those leaves replaced that are given, by path, in the dtype of the fresh ones."""
    if not start:
        return dict(variables)
    put = lambda place, leaf: jnp.asarray(start[path_of(place)], leaf.dtype) if path_of(place) in start else leaf
    return dict(jax.tree_util.tree_map_with_path(put, variables))


def path_of(place: Any) -> str:
    """A leaf's path as text: "params/dense/kernel"."""
    return jax.tree_util.keystr(place, simple=True, separator="/")
