"""The training step and the program that runs it: pure functions of the state and the batch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from arch_jax import fields
from arch_jax.experiment import Experiment
from arch_jax.layers import collections
from arch_jax.objectives.base import Player
from arch_jax.ops.precision import at_least_float32
from arch_jax.train.checks import check_collections, check_pairs
from arch_jax.train.state import TrainState

Metrics = dict[str, tuple[jax.Array, jax.Array]]


Step = Callable[..., tuple[TrainState, Metrics]]


def make_step(experiment: Experiment, axis: str | None = None) -> Step:
    """One step: every player in turn, phase by phase, computes its gradient and updates its own parameters.

    Args:
      experiment: settles objective, optimizers, micro-batches and moving average.
      axis: name of the mapped axis over devices, for `pmap`; sums then run over it. None where the arrays are global.

    Returns:
      step(state, batch, numbers=None) -> (state, metrics as name -> (sum, weight)), where `numbers` stands for
      `experiment.numbers`: given as an argument, they are not compiled in.
    """
    task, players = synchronised(experiment, axis).task, experiment.task.players
    several = len(players) > 1

    def total(tree: Any) -> Any:
        return tree if axis is None else jax.lax.psum(tree, axis)

    def gradient(player: Player, phase: str, state: TrainState, batch: Any, key: jax.Array):
        """Gradient of the loss's sum, the loss's weight, metrics, and updated collections, over one micro-batch."""

        def objective(part: Any):
            variables = state.replace(parameters=state.parameters | {player.name: part}).variables
            loss, (metrics, updates) = task.total_loss(player.name, phase, variables, batch, key, state.step)
            part = f"the objective {type(task).__name__}, player {player.name!r}, phase {phase!r},"
            check_pairs({"loss": loss} | metrics, part)
            check_collections(state.others, updates, part)
            return loss[0], (loss[1], metrics, updates)

        part = state.parameters[player.name]
        (_, (weight, metrics, updates)), slope = jax.value_and_grad(objective, has_aux=True)(part)
        return *at_least_float32((slope, weight, metrics)), state.others | updates

    def accumulated(player: Player, phase: str, state: TrainState, batch: Any, key: jax.Array):
        """The same over all micro-batches, one after another: sums are added, collections handed on."""
        count = experiment.accumulate
        if count == 1:
            return gradient(player, phase, state, batch, key)
        pieces = jax.tree.map(lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]), batch)

        def body(carry, item):
            sums, others = carry
            i, piece = item
            *new, others = gradient(player, phase, state.replace(others=others), piece, jax.random.fold_in(key, i))
            return (jax.tree.map(jnp.add, sums, tuple(new)), others), None

        sums_of = lambda s, b, k: gradient(player, phase, s, b, k)[:3]
        shapes = jax.eval_shape(sums_of, state, jax.tree.map(lambda x: x[0], pieces), key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        (sums, others), _ = jax.lax.scan(body, (zeros, state.others), (jnp.arange(count), pieces))
        return *sums, others

    def update(player: Player, phase: str, state: TrainState, batch: Any, key: jax.Array, numbers: Any):
        """The state with one player's parameters updated by one of its phases, and its metrics."""
        slope, weight, metrics, others = accumulated(player, phase, state, batch, key)
        slope, weight, metrics = total((slope, weight, metrics))
        if axis is not None:
            others = collections.over_devices(state.others, others, axis)
        slope = jax.tree.map(lambda g: g / jnp.where(weight == 0, 1, weight).astype(g.dtype), slope)
        name = player.name
        transformation = experiment.optimizers[name].transformation(experiment.steps, numbers[name])
        changes, optimizer = transformation.update(slope, state.optimizer[name], state.parameters[name])
        new = state.replace(
            parameters=state.parameters | {name: optax.apply_updates(state.parameters[name], changes)},
            optimizer=state.optimizer | {name: optimizer},
            others=others,
        )
        one = jnp.ones((), weight.dtype)
        metrics = metrics | {"gradient_norm": (optax.global_norm(slope).astype(weight.dtype), one)}
        place = "/".join([*([name] if several else []), *([phase] if phase != "main" else []), ""])
        return new, {f"{place}{metric}": pair for metric, pair in metrics.items()}

    def step(state: TrainState, batch: Any, numbers: Any = None) -> tuple[TrainState, Metrics]:
        numbers = experiment.numbers if numbers is None else numbers
        key = jax.random.fold_in(state.key, state.step)
        if axis is not None:  # each device draws for its own part of the batch
            key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        metrics: Metrics = {}
        for i, player in enumerate(players):
            own_key = jax.random.fold_in(key, i) if several else key
            for j, (phase, period) in enumerate(player.periods):
                phase_key = own_key if phase == "main" else jax.random.fold_in(own_key, 2**31 + j)
                own = functools.partial(update, player, phase, batch=batch, key=phase_key, numbers=numbers)
                if period == 1:
                    state, new = own(state)
                else:
                    idle = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(own, state)[1])
                    state, new = jax.lax.cond(state.step % period == 0, own, lambda s, idle=idle: (s, idle), state)
                metrics |= new
        if experiment.ema is not None:
            share = 1 - experiment.ema
            if experiment.ema_warmup:
                share = jnp.maximum(share, 9 / (10 + state.step))
            blend = lambda a, p: a + (share * (p.astype(a.dtype) - a)).astype(a.dtype)
            followed = state.parameters | collections.averaged(state.others)
            state = state.replace(average=jax.tree.map(blend, state.average, followed))
        return state.replace(step=state.step + 1), metrics

    return step


def synchronised(experiment: Experiment, axis: str | None) -> Experiment:
    """With each `axis_name` in the model set to the mapped axis: batch statistics are then those of the whole batch."""
    names = [path for path, _ in fields.walk(experiment.model) if path.rsplit(".", 1)[-1] == "axis_name"]
    if axis is None or not names:
        return experiment
    model = fields.override(experiment.model, dict.fromkeys(names, axis))
    return dataclasses.replace(experiment, model=model)


def make_program(experiment: Experiment, axis: str | None = None, record: int | None = None) -> Callable:
    """Several steps as one program: `program(state, batches, count, numbers)`, batches stacked on a leading axis.

    The number of steps is an argument of the compiled program, not a part of it: 10 + 10, 5 x 4 and 20 steps run the
    very same instructions and agree bit for bit, and one compilation serves them all. (A loop whose length the compiler
    knows would be unrolled where it is 1, and fused otherwise.)

    Args:
      experiment: what is trained.
      axis: as for `make_step`.
      record: most steps of one call; by default as many as there are batches. With more steps than batches, the last
        batch is taken again.

    Returns:
      program(state, batches, count, numbers=None) -> (state, metrics as name -> (sums, weights), one entry a step;
      entries from `count` on are 0), with `numbers` as for `make_step`.
    """
    step = jax.jit(make_step(experiment, axis))  # inner jit: traced once, for the shapes and for the loop

    def program(state: TrainState, batches: Any, count: jax.Array, numbers: Any = None):
        size = jax.tree.leaves(batches)[0].shape[0] if record is None else record
        at = lambda i: jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), batches)
        _, shapes = jax.eval_shape(step, state, jax.tree.map(lambda x: x[0], batches), numbers)
        empty = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

        def body(i, carry):
            state, written = carry
            state, metrics = step(state, at(i), numbers)
            return state, jax.tree.map(lambda r, m: r.at[i].set(m), written, metrics)

        return jax.lax.fori_loop(0, count, body, (state, empty))

    return program
