"""The contract of an objective: a training shape that owns how variables are made, what is minimised and evaluated.

Losses and metrics are (sum, weight) pairs, summed over everything that a step sees (devices, micro-batches, the batches
of a validation set) and divided once at the end: a mean of means would be wrong for packed or uneven batches.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from arch_jax.data.base import with_defaults
from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure, measured
from arch_jax.fields import Kind
from arch_jax.figures.base import Figure, drawn
from arch_jax.layers import sowing
from arch_jax.ops.losses import Pair
from arch_jax.sampling.base import Sampler
from arch_jax.sampling.predict import Predict

Batch = Mapping[str, Any]
Objective = Annotated[Any, Kind("objective")]


@dataclasses.dataclass(frozen=True)
class Phase:
    """A loss of a player with a period of its own, on the same parameters and the same optimizer.

    Lazy regularisation (Karras et al. 2020, 1912.04958, section 3.1) is a second phase: R1 every 16 steps, say, with an
    update of its own.

    Attributes:
      name: what `loss` is told: "main", "r1", "path_length" ...
      every: it is taken in every `every`-th step; in the others its metrics have weight 0.
    """

    name: str = "main"
    every: int = 1


@dataclasses.dataclass(frozen=True)
class Player:
    """A part of the parameters, perhaps of several networks, that is trained with an optimizer of its own.

    Attributes:
      name: e.g. "model", "generator".
      owns: names of the top-level parameter groups it updates; None is all of them.
      every: its main phase is taken in every `every`-th step; in the others its metrics have weight 0.
      phases: its losses, in the order in which a step takes them.
    """

    name: str = "model"
    owns: tuple[str, ...] | None = None
    every: int = 1
    phases: tuple[Phase, ...] = (Phase(),)

    @property
    def periods(self) -> tuple[tuple[str, int], ...]:
        """(phase, in every how many steps it is taken)."""
        return tuple((one.name, self.every if one.name == "main" else one.every) for one in self.phases)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _outputs(model: nn.Module, method: str | None, variables: Any, *arguments: Any) -> Any:
    return model.apply(variables, *arguments, method=method)


@dataclasses.dataclass(frozen=True)
class ObjectiveBase:
    """The parts that every objective has; a new one overrides `arguments`, `loss` and `evaluate`.

    Attributes:
      model: the module it trains; filled in by the experiment.
    """

    model: Annotated[Any, Kind("model")] | None = None

    #: What the loss is counted in.
    unit: ClassVar[str] = "nats"

    @property
    def players(self) -> tuple[Player, ...]:
        """Who minimises what; one for most."""
        return (Player(),)

    @property
    def sampler(self) -> Sampler:
        """The sampler of a run that names no other: by default the model's outputs on validation examples."""
        return Predict()

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures of a run that names no others."""
        return ()

    @property
    def figures(self) -> tuple[Figure, ...]:
        """The figures of a run that names no others."""
        return ()

    def with_model(self, model: nn.Module) -> "ObjectiveBase":
        """The same objective for `model`."""
        return dataclasses.replace(self, model=model)

    def arguments(self, batch: Batch) -> tuple:
        """The arguments that the model is called with, taken from a batch."""
        raise TypeError(f"{type(self).__name__} must say what of a batch its model is called with")

    def init(self, key: jax.Array, batch: Batch, held: Any = None) -> dict[str, Any]:
        """Fresh variables: {"params": ..., other collections}.

        Args:
          key: of the draw.
          batch: for its shapes.
          held: {"frozen": ...} where the objective has frozen parts, for those that need them to know a shape.
        """
        return dict(self.model.init(key, *self.arguments(batch)))

    def loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        """The loss that `player` minimises in `phase`.

        Args:
          player: the name of one of `players`.
          phase: the name of one of its phases; "main" for most.
          variables: {"params": ..., other collections}.
          batch: of the data; a micro-batch where a batch is cut into several.
          key: of everything random.
          step: optimizer steps taken before this one, not micro-batches; a traced integer.

        Returns:
          ((sum, weight), (metrics as name -> (sum, weight), updated collections other than "params")).
        """
        raise TypeError(f"{type(self).__name__} must say what {player!r} minimises in {phase!r}")

    def total_loss(
        self, player: str, phase: str, variables: Any, batch: Batch, key: jax.Array, step: Any
    ) -> tuple[Pair, tuple[dict, dict]]:
        """`loss`, and what layers have sown beside it: what the train step minimises.

        A sown loss counts with the weight of the main one, so that both are means over the same batch, and is reported
        under its name, as sown metrics are. "loss" stays the main one, which evaluation can be compared with.

        Returns:
          As `loss`, without the sown collections.

        Raises:
          UsageError: a sown name that the objective has a metric of.
        """
        found = self.loss(player, phase, variables, batch, key, step)
        try:
            (total, weight), (metrics, updates) = found
            updates, metrics = dict(updates), dict(metrics)
        except (TypeError, ValueError) as problem:
            raise UsageError(
                f"the loss of {type(self).__name__} for player {player!r} in phase {phase!r} is not ((sum, weight), "
                "(metrics by name, updated collections)); expected two pairs"
            ) from problem
        total, weight = jnp.asarray(total), jnp.asarray(weight)
        if total.ndim or weight.ndim:
            raise UsageError(
                f"the loss of {type(self).__name__} for player {player!r} in phase {phase!r} has a sum of shape "
                f"{total.shape} and a weight of shape {weight.shape}; expected scalars"
            )
        weight = weight if jnp.issubdtype(weight.dtype, jnp.floating) else weight.astype(total.dtype)
        sown = {name: updates.pop(name, {}) for name in sowing.COLLECTIONS}
        told = sowing.metrics_of(sown["metrics"])
        for name, value in sowing.losses_of(sown["losses"]).items():
            total = total + weight * value.astype(total.dtype)
            told[name] = (weight * value.astype(weight.dtype), weight)
        for name in told.keys() & metrics.keys():
            raise UsageError(f"a layer sows {name!r}, which the objective has a metric of; expected another name")
        return (total, weight), (metrics | told, updates)

    def evaluate(self, variables: Any, batch: Batch) -> dict[str, Pair]:
        """Metrics of one validation batch as (sum, weight) pairs; "loss" among them."""
        raise TypeError(f"{type(self).__name__} must say how it is evaluated")

    def measure(self, variables: Any, data: Any, key: jax.Array | None = None) -> dict[str, float]:
        """The default measures' numbers on a corpus, outside of a run."""
        key = jax.random.key(0) if key is None else key
        return measured(self.measures, self, variables, self.sampler, with_defaults(data), key)

    def draw(self, variables: Any, data: Any, key: jax.Array) -> dict[str, Any]:
        """The default figures on a corpus, outside of a run: name -> text or matplotlib figure."""
        return drawn(self.figures, self, variables, self.sampler, with_defaults(data), key)

    def check(self, data: Any) -> None:
        """Refuses data that the model can't take, with one sentence."""

    def outputs(self, variables: Any, *arguments: Any, method: str | None = None) -> Any:
        """The model's outputs outside of training; compiled once, however often they are asked for."""
        return _outputs(self.model, method, variables, *arguments)

    def apply(self, variables: Any, *arguments: Any, key: jax.Array, **options: Any) -> tuple[Any, dict]:
        """The model in training: `train=True`, a dropout key, its other collections and what layers sow mutable.

        Returns:
          (what the model gives, updated collections; the sown ones among them, which `loss` hands on to `total_loss`).
        """
        others = [kind for kind in variables if kind not in ("params", "frozen")]
        options = {"train": True, "rngs": {"dropout": key}, "mutable": [*others, *sowing.COLLECTIONS]} | options
        return self.model.apply(variables, *arguments, **options)
