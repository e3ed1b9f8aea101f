"""Inverted residuals, stochastic depth, squeeze and excitation, and how widths are rounded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.vision.inverted_residual import InvertedResidual, divisible
from arch_jax.layers.vision.squeeze_excitation import SqueezeExcitation
from arch_jax.layers.vision.stochastic_depth import StochasticDepth, rising
from arch_jax.models.cnn.convnext import ConvNeXtBlock
from arch_jax.models.cnn.resnet import Residual


def drawn(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_stochastic_depth_leaves_out_whole_examples_and_keeps_the_mean():
    x, layer = jnp.ones((4000, 3, 2)), StochasticDepth(0.3)
    out = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)})).reshape(4000, 6)
    assert (np.ptp(out, axis=1) == 0).all()
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=1e-6)
    assert abs((out[:, 0] == 0).mean() - 0.3) < 4 * (0.3 * 0.7 / 4000) ** 0.5
    np.testing.assert_array_equal(layer.apply({}, x), x)
    with pytest.raises(UsageError, match=r"stochastic_depth is 1\.0"):
        StochasticDepth(1.0)
    assert rising(0.4, 5) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert rising(0.4, 1) == [0]


def test_squeeze_and_excitation_by_hand():
    x = drawn(2, 3, 4, 5)
    module = SqueezeExcitation(2)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    params = variables["params"]
    hidden = np.maximum(x.mean((1, 2)) @ params["reduce"]["kernel"] + params["reduce"]["bias"], 0)
    gates = 1 / (1 + np.exp(-(hidden @ params["expand"]["kernel"] + params["expand"]["bias"])))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), x * gates[:, None, None, :], atol=1e-6)


def test_what_is_added_to_the_branch():
    """With the last scale at 0 a block gives what it is given, where the shapes allow it; and 0 where they don't."""
    x = drawn(2, 6, 6, 4)
    for features, stride, expected in ((4, 1, x), (4, 2, jnp.zeros((2, 3, 3, 4))), (5, 1, jnp.zeros((2, 6, 6, 5)))):
        module = InvertedResidual(features, 3, stride=stride)
        variables = jax.jit(module.init)(jax.random.key(0), x)
        variables["params"]["project"]["norm"]["scale"] *= 0
        np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), expected)


def test_a_residual_block_of_zero_scale_is_its_shortcut():
    x = drawn(2, 6, 6, 4)
    module = Residual(4, zero_scale=True)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), jnp.maximum(x, 0))
    plain = Residual(4, zero_scale=True, shortcut="none")
    np.testing.assert_array_equal(jax.jit(plain.apply)(variables, x), jnp.zeros_like(x))


def test_a_convnext_block_of_zero_scale_is_the_identity():
    x = drawn(2, 6, 6, 4)
    module = ConvNeXtBlock(layer_scale=0.0)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    np.testing.assert_array_equal(jax.jit(module.apply)(variables, x), x)


@pytest.mark.parametrize(
    ("channels", "by", "expected"), [(32, 8, 32), (33, 8, 32), (36, 8, 40), (3, 8, 8), (11, 8, 16), (12.8, 4, 12)]
)
def test_widths_are_multiples_that_do_not_lose_a_tenth(channels, by, expected):
    assert divisible(float(channels), by) == expected
