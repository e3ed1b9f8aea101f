"""Counting operations: against hand formulas, with loops multiplied out."""

import jax
import jax.numpy as jnp
import pytest

from arch_jax.flops import count_flops


def zeros(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_product():
    assert count_flops(jnp.matmul, zeros(3, 5), zeros(5, 7)).products == 2 * 3 * 5 * 7


def test_batched_product():
    product = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
    assert count_flops(product, zeros(4, 3, 5), zeros(4, 5, 7)).products == 2 * 4 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(groups):
    def convolve(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    # 8 x 8 pictures halve to 4 x 4; each output reads 3 x 3 pixels of the input channels of its group.
    flops = count_flops(convolve, zeros(2, 8, 8, 8), zeros(3, 3, 8 // groups, 12))
    assert flops.products == 2 * (2 * 4 * 4 * 12) * (3 * 3 * 8 // groups)


def test_loops_are_multiplied_out():
    def repeated(x, w):
        return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=11)[0]

    flops = count_flops(repeated, zeros(3, 5), zeros(5, 5))
    assert flops.products == 11 * 2 * 3 * 5 * 5
    assert flops.elementwise == 11 * 3 * 5


def test_a_loop_of_unknown_length_is_told():
    flops = count_flops(lambda x: jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y * 2, x), zeros(4))
    assert flops.unbounded == 1


def test_calls_are_entered():
    """jit, remat and hand-written derivatives hide nothing."""

    @jax.custom_vjp
    def double(x):
        return x @ jnp.ones((5, 5))

    double.defvjp(lambda x: (double(x), None), lambda _, g: (g,))
    function = lambda x: jax.jit(jax.checkpoint(double))(x)
    assert count_flops(function, zeros(3, 5)).products == 2 * 3 * 5 * 5
    assert count_flops(jax.grad(lambda x: (x @ x).sum()), zeros(5, 5)).products == 3 * 2 * 5 * 5 * 5


def test_branches_count_the_costliest():
    function = lambda x: jax.lax.cond(x.sum() > 0, lambda y: y @ y @ y, lambda y: y @ y, x)
    assert count_flops(function, zeros(5, 5)).products == 2 * 2 * 5**3


def test_decoder_against_the_formula():
    """2 for each weight that a token meets in a product, and the attention's two products over what is visible."""
    from arch_jax import create

    vocabulary, depth, width, heads, time = 50, 3, 32, 4, 16
    sizes = {"vocabulary": vocabulary, "depth": depth, "width": width, "mixer.heads": heads, "position.length": time}
    model = create("gpt2", **sizes, **{"mixer.implementation": "reference"})
    tokens = jax.ShapeDtypeStruct((2, time), jnp.int32)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens)
    weights = depth * 12 * width**2 + vocabulary * width
    attention = depth * 2 * 2 * time * width
    assert count_flops(model.apply, variables, tokens).products == 2 * time * (2 * weights + attention)
