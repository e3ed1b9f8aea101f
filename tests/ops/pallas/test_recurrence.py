"""The recurrence's kernels: interpreted against the definition, in a simulated TPU's memories, on a mesh, lowered."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from arch_jax.errors import UsageError
from arch_jax.ops.pallas.recurrence import recurrence_kernel
from arch_jax.ops.platform import acting_as
from arch_jax.ops.recurrence.linear import linear_recurrence, linear_recurrence_reference


def draw(batch, time, channels, seed=0):
    generator = np.random.default_rng(seed)
    shape = (batch, time, channels)
    values = (generator.uniform(-1, 1, shape), generator.normal(size=shape), generator.normal(size=(batch, channels)))
    return tuple(jnp.asarray(x, jnp.float32) for x in values)


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", [(2, 300, 20), (1, 1, 3), (1, 17, 600)])
def test_is_the_definition(platform, reverse, shape):
    a, b, before = draw(*shape)
    kernel = functools.partial(recurrence_kernel, reverse=reverse, platform=platform, interpret=True)
    turn = (lambda x: np.flip(x, 1)) if reverse else np.asarray
    expected = turn(linear_recurrence_reference(turn(a), turn(b), before))
    np.testing.assert_allclose(jax.jit(kernel)(a, b, before), expected, atol=1e-5)


def test_in_a_simulated_memory_of_a_tpu():
    """What is read before it is written is NaN there."""
    a, b, before = draw(2, 520, 5)
    simulated = pltpu.InterpretParams(uninitialized_memory="nan")
    h = recurrence_kernel(a, b, before, platform="tpu", interpret=simulated)
    np.testing.assert_allclose(h, linear_recurrence_reference(a, b, before), atol=1e-5)


def test_its_gradient_is_that_of_the_other_forms():
    a, b, before = draw(2, 40, 6)
    a, b = a.reshape(2, 40, 3, 2), b.reshape(2, 40, 3, 2)
    before = before.reshape(2, 3, 2)
    loss = lambda form, *x: jnp.sum(jnp.sin(linear_recurrence(*x, form=form)))
    found, expected = (
        jax.jit(jax.grad(functools.partial(loss, form), argnums=(0, 1, 2)))(a, b, before)
        for form in ("pallas", "sequential")
    )
    chex.assert_trees_all_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("platform", "call"), [("tpu", "tpu_custom_call"), ("gpu", "__gpu$xla.gpu.triton")])
def test_forward_and_backward_are_lowered(platform, call):
    loss = lambda a, b, before: jnp.sum(linear_recurrence(a, b, before, form="pallas") ** 2)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 300, 96, 16), (2, 300, 96, 16), (2, 96, 16))]
    with acting_as(platform):
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*shapes)
    target = {"tpu": "tpu", "gpu": "cuda"}[platform]
    assert traced.lower(lowering_platforms=(target,)).as_text().count(call) == 2


def test_bad_input_is_named():
    a, b, before = draw(1, 8, 4)
    with pytest.raises(UsageError, match="bfloat16 and float32; expected float32"):
        recurrence_kernel(a.astype(jnp.bfloat16), b, before)
    with pytest.raises(UsageError, match="platform of a Pallas kernel 'gpus'"):
        recurrence_kernel(a, b, before, platform="gpus")
    with pytest.raises(UsageError, match="was given complex64; expected float32"):
        linear_recurrence(a + 0j, b, form="pallas")
