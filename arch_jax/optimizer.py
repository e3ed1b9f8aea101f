"""Optimizers as plain settings.

They are turned into Optax transformations late: those are closures, which can't be written down.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.layers.parameter_kinds import ParameterKind, parameter_kind
from arch_jax.ops.precision import at_least_float32
from arch_jax.ranges import Count

#: A part of a path that stands for the layers of a stack, scanned or not.
_LAYER = re.compile(r"stack|layers|layer_\d+")


@component("optimizer", kind="optimizer")
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optimizer settings.

    Attributes:
      name: "adamw" (1711.05101), "adam" (1412.6980), "sgd", "lion" (2302.06675), "adafactor" (1804.04235), "muon".
      learning_rate: peak of the schedule.
      schedule: after the warm-up: "constant", "cosine", "linear", "steps" (`final`^1/2 of the rate from half
        of the way on, `final` from three quarters on; 1512.03385, section 4.2), or "rsqrt" (1706.03762, section 5.3).
      warmup: steps of linear warm-up, from learning_rate / (warmup + 1); fewer than the schedule has to its horizon.
      horizon: the step at which the schedule ends; None is the experiment's `steps` when the run begins.
      final: the learning rate at the horizon, as a fraction of `learning_rate`.
      weight_decay: strength of decoupled decay, multiplied by the learning rate.
      decay: parameters that decay: "matrices" (of products, and tables of embeddings), "kernels" (without those
        tables) or "all". Biases, scales and numbers that set a rate are no matrices.
      b1: decay of the first moment; the momentum of "sgd" and "muon".
      b2: decay of the second moment.
      epsilon: added to the denominator.
      clip: the global norm that gradients are clipped to; None disables it.
      master: whether parameters of fewer than 32 bits are followed by float32 copies that take the steps (1710.03740,
        section 3.1): a bfloat16 weight of 1 does not notice steps below 1/512. Moments are float32 in any case.
    """

    name: Literal["adamw", "adam", "sgd", "lion", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear", "steps", "rsqrt"] = "cosine"
    warmup: Count = 0
    horizon: int | None = None
    final: float = 0.1
    weight_decay: float = 0.0
    decay: Literal["matrices", "kernels", "all"] = "matrices"
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8
    clip: float | None = 1.0
    master: bool = False

    def __post_init__(self) -> None:
        if not self.learning_rate >= 0:
            raise UsageError(f"learning_rate is {self.learning_rate}; expected at least 0")
        if self.warmup < 0:
            raise UsageError(f"warmup is {self.warmup}; expected at least 0 steps")
        if self.horizon is not None and self.horizon < 1:
            raise UsageError(f"horizon is {self.horizon}; expected at least 1 step")
        if self.clip is not None and not self.clip > 0:
            raise UsageError(f"clip is {self.clip}; expected more than 0, or none")
        if self.name == "adam" and self.weight_decay:
            raise UsageError(
                f"weight_decay is {self.weight_decay}, and 'adam' has none; the nearest is the optimizer 'adamw'"
            )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; expected at least 0 and less than 1")

    def check_horizon(self, steps: int) -> None:
        """Refuses a warm-up that doesn't end before the schedule does: the rate would never be reached, and then jump.

        Args:
          steps: of the run, where `horizon` is open.
        """
        end = self.horizon or steps
        if self.schedule in ("cosine", "linear", "steps") and self.warmup and self.warmup >= end:
            what = "horizon is" if self.horizon else "steps is"
            raise UsageError(
                f"optimizer.warmup is {self.warmup}, and {what} {end}, so learning_rate is never reached; expected a "
                f"warm-up of at most {end - 1} steps"
            )

    @property
    def numbers(self) -> dict[str, float]:
        """The settings that a compiled step takes as arguments: runs that differ in these alone share a compilation.

        Only linear factors, so that float32 loses nothing. (1 - b2 would lose digits.) A decay
        of 0 and no clipping are other programs, and not among them.
        """
        found = {"learning_rate": self.learning_rate, "final": self.final, "epsilon": self.epsilon}
        found |= {"weight_decay": self.weight_decay} if self.weight_decay else {}
        return found | ({"clip": self.clip} if self.clip is not None else {})

    def learning_rates(self, steps: int, numbers: Mapping[str, Any] | None = None) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps`; `numbers` as for `transformation`."""
        settled = self.numbers | dict(numbers or {})
        rate, final, warmup = settled["learning_rate"], settled["final"], self.warmup
        after = max(1, (self.horizon or steps) - warmup)
        rest = {
            "constant": lambda: optax.constant_schedule(rate),
            "cosine": lambda: optax.cosine_decay_schedule(rate, after, alpha=final),
            "linear": lambda: optax.linear_schedule(rate, rate * final, after),
            "steps": lambda: (
                lambda step: (
                    rate * jnp.where(2 * step < after, 1, jnp.where(4 * step < 3 * after, jnp.sqrt(final), final))
                )
            ),
            "rsqrt": lambda: lambda step: rate * (1 + jnp.maximum(step, 0) / (warmup or 1)) ** -0.5,
        }[self.schedule]()
        if not warmup:
            return rest
        start = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
        return optax.join_schedules([start, rest], [warmup])

    def transformation(self, steps: int, numbers: Mapping[str, Any] | None = None) -> optax.GradientTransformation:
        """The Optax transformation for a run of `steps`.

        Args:
          steps: of the run, where `horizon` is open.
          numbers: in place of `self.numbers`, such as arguments of a compiled step; None takes those themselves.
        """
        settled = self.numbers | dict(numbers or {})
        rates, strength = self.learning_rates(steps, settled), settled.get("weight_decay", 0.0)
        decay = {"weight_decay": strength, "mask": self.decays}
        moments = {"b1": self.b1, "b2": self.b2, "eps": settled["epsilon"]}
        match self.name:
            case "adamw":
                core = optax.adamw(rates, **moments, **decay)
            case "adam":
                core = optax.adam(rates, **moments)
            case "lion":
                core = optax.lion(rates, b1=self.b1, b2=self.b2, **decay)
            case "sgd":
                core = optax.chain(optax.sgd(rates, momentum=self.b1 or None), self._decay(rates, strength))
            case "adafactor":
                core = optax.chain(optax.adafactor(rates), self._decay(rates, strength))
            case "muon":
                muon = optax.contrib.muon(
                    rates,
                    beta=self.b1,
                    adam_b2=self.b2,
                    eps=settled["epsilon"],
                    muon_weight_dimension_numbers=muon_dimensions,
                    consistent_rms=0.2,  # updates as large as Adam's, so that one rate serves both (2502.16982)
                )
                core = optax.chain(muon, self._decay(rates, strength))
        core = core if self.clip is None else optax.chain(optax.clip_by_global_norm(settled["clip"]), core)
        return with_masters(in_float32(core)) if self.master else in_float32(core)

    def _decay(self, rates: optax.Schedule, strength: Any) -> optax.GradientTransformation:
        """Decoupled decay for those optimizers whose own, in Optax, is coupled, unmasked, or without the rate."""
        if not self.weight_decay:
            return optax.identity()

        def update(updates: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
            share = rates(state.count) * strength
            less = lambda u, p, decays: u - (share * p).astype(u.dtype) if decays else u
            updates = jax.tree.map(less, updates, parameters, self.decays(parameters))
            return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

        return optax.GradientTransformation(
            lambda parameters: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
        )

    def decays(self, parameters: Any) -> Any:
        """A tree of booleans: the parameters that decay."""
        kinds = {"matrices": ("matrix", "table"), "kernels": ("matrix",), "all": ("matrix", "table", "other")}[
            self.decay
        ]
        return jax.tree_util.tree_map_with_path(lambda path, p: kind_of(path, p) in kinds, parameters)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation that sees gradients and parameters in at least float32, so that its moments are that, too.

    With float32 parameters it is `inner`, bit for bit and in its state. Changes come back in at least float32.
    """

    def update(gradients: Any, state: Any, parameters: Any) -> tuple[Any, Any]:
        return inner.update(at_least_float32(gradients), state, at_least_float32(parameters))

    return optax.GradientTransformation(lambda parameters: inner.init(at_least_float32(parameters)), update)


class MasterState(NamedTuple):
    """The float32 copy of each parameter of fewer bits, `optax.MaskedNode()` for the others; and the inner state."""

    masters: Any
    inner: Any


def with_masters(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """A transformation whose steps are taken by float32 copies, which the parameters follow, rounded."""

    def init(parameters: Any) -> MasterState:
        copy = lambda wide, p: optax.MaskedNode() if wide.dtype == p.dtype else wide
        return MasterState(jax.tree.map(copy, at_least_float32(parameters), parameters), inner.init(parameters))

    def update(gradients: Any, state: MasterState, parameters: Any) -> tuple[Any, MasterState]:
        none = lambda master: isinstance(master, optax.MaskedNode)
        exact = jax.tree.map(lambda p, m: p if none(m) else m, parameters, state.masters)
        changes, after = inner.update(gradients, state.inner, exact)
        moved = jax.tree.map(lambda m, c: m if none(m) else m + c, state.masters, changes, is_leaf=none)
        # The change that takes a parameter from where it is to its rounded copy.
        follow = lambda p, m, c: c if none(m) else m.astype(p.dtype).astype(m.dtype) - p.astype(m.dtype)
        return jax.tree.map(follow, parameters, moved, changes), MasterState(moved, after)

    return optax.GradientTransformation(init, update)


def kind_of(path: tuple, leaf: Any) -> ParameterKind:
    """The kind of a leaf of a tree of parameters."""
    return parameter_kind([str(getattr(key, "key", key)) for key in path], leaf.ndim)


def muon_dimensions(parameters: Any) -> Any:
    """The parameters that Muon orthogonalises: kernels of hidden layers, each scanned layer by itself.

    Embeddings, the output layer, biases and norms go to AdamW, as its author advises.
    """

    def of(path: tuple, leaf: Any) -> Any:
        names = [str(getattr(key, "key", key)) for key in path]
        if kind_of(path, leaf) != "matrix" or not any(map(_LAYER.fullmatch, names)) or leaf.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)

    return jax.tree_util.tree_map_with_path(of, parameters)
