"""No program keeps a long sum in fewer than 32 bits, whatever parameters are stored in: training steps, and mixers."""

import functools

import jax
import jax.numpy as jnp
import pytest

from arch_jax import fields, registry
from arch_jax.experiment import Experiment, import_asked_for, import_components
from arch_jax.layers.mixers.contract import adapted
from arch_jax.objectives import objective
from arch_jax.train.state import initial_state
from arch_jax.train.step import make_step
from tests.contract.narrow_sums import narrow_sums
from tests.contract.test_mixers import BATCH, CASES, TIME, WIDTH

import_components()
import_asked_for()
ARCHITECTURES = {entry.architecture: entry for entry in reversed(registry.models().values())}
FEW_BITS = {"dtype": "bfloat16", "parameter_dtype": "bfloat16"}


def in_few_bits(module):
    """The module with every dtype in it set to bfloat16."""
    names = [path for path, _ in fields.walk(module) if path.rsplit(".", 1)[-1] in FEW_BITS]
    return fields.override(module, dict.fromkeys(names, "bfloat16"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_training_steps(name):
    entry = ARCHITECTURES[name]
    module = in_few_bits(entry.tiny())
    it = Experiment(module, objective(entry.objective), None, steps=6, accumulate=2, ema=0.9)
    batch = jax.eval_shape(lambda: entry.inputs.resized(module).batch(module, 4, jax.random.key(0)))
    state = jax.eval_shape(lambda batch: initial_state(it, batch), batch)
    program, (_, metrics) = jax.make_jaxpr(make_step(it), return_shape=True)(state, batch)
    assert narrow_sums(program) == []
    # Before the step widens them: a sum over a batch is a long one.
    pairs = [
        jax.eval_shape(
            lambda v, b, p=p: it.task.loss(p.name, "main", v, b, jax.random.key(0), 0), state.variables, batch
        )
        for p in it.task.players
    ]
    pairs.append(jax.eval_shape(it.task.evaluate, state.variables, batch))
    sums = [leaf for loss in pairs[:-1] for leaf in jax.tree.leaves((loss[0], loss[1][0]))] + jax.tree.leaves(pairs[-1])
    assert {str(leaf.dtype) for leaf in sums + jax.tree.leaves(metrics)} == {"float32"}


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "change"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_mixers(name, change):
    """Every setting of the mixers' contract, with segments."""
    mixer = adapted(fields.override(fields.components("mixer")[name](), change), **FEW_BITS)
    x, ids = jnp.ones((BATCH, TIME, WIDTH), jnp.bfloat16), jnp.ones((BATCH, TIME), jnp.int32)
    variables = jax.eval_shape(lambda: mixer.init(jax.random.key(0), x))
    loss = lambda variables, x: mixer.apply(variables, x, ids)[0].astype(jnp.float32).sum()
    assert narrow_sums(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(variables, x)) == []


def test_they_are_found():
    """A scattered sum and a gradient that a loop adds up; neither a residual stream nor a sum in float32."""
    table, weight, xs = jnp.ones((3, 2), jnp.bfloat16), jnp.ones((), jnp.bfloat16), jnp.ones(4, jnp.bfloat16)
    scattered = jax.make_jaxpr(jax.grad(lambda table: table[jnp.zeros(9, int)].astype(jnp.float32).sum()))(table)
    assert [one.split()[0] for one in narrow_sums(scattered)] == ["scatter-add"]
    shared = lambda weight: jax.lax.scan(lambda c, x: (c, weight * x), xs[0], xs)[1].astype(jnp.float32).sum()
    assert [one.split(" of ")[0] for one in narrow_sums(jax.make_jaxpr(jax.grad(shared))(weight))] == ["carried sum"]
    stream = functools.partial(jax.lax.scan, lambda c, x: (c + x, None), xs[0])
    assert narrow_sums(jax.make_jaxpr(stream)(xs)) == []
    assert narrow_sums(jax.make_jaxpr(jax.grad(shared))(jnp.float32(1))) == []
