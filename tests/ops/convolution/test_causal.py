"""The short causal convolution: against its definition and XLA's, over packed rows, and in chunks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.short_convolution import ShortConvolution
from arch_jax.ops.convolution import causal as ops
from arch_jax.ops.convolution.causal import causal_convolution_reference, initial_state

causal_convolution = jax.jit(ops.causal_convolution)
TIME, CHANNELS = 9, 3
RUN = np.array([[1, 1, 0, 1, 2, 2, 2, 2, 0], [0, 1, 1, 1, 1, 0, 0, 1, 1]], np.int32)


def draw(size, time=TIME):
    generator = np.random.default_rng(size)
    x, kernel, bias = (generator.normal(size=s) for s in ((2, time, CHANNELS), (size, CHANNELS), (CHANNELS,)))
    return tuple(array.astype(np.float32) for array in (x, kernel, bias))


@pytest.mark.parametrize("size", [1, 2, 4, 12])
@pytest.mark.parametrize("packed", [False, True])
def test_is_the_definition(size, packed):
    x, kernel, bias = draw(size)
    run = RUN if packed else None
    y, state = causal_convolution(x, kernel, bias, run=run)
    assert state is None
    np.testing.assert_allclose(y, causal_convolution_reference(x, kernel, bias, run), atol=1e-5)


def test_is_the_depthwise_convolution_of_xla():
    x, kernel, _ = draw(4)
    expected = jax.lax.conv_general_dilated(
        x, kernel[:, None], (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=CHANNELS
    )
    np.testing.assert_allclose(causal_convolution(x, kernel)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [3, *(pytest.param(n, marks=pytest.mark.thorough) for n in (1, 6))])
@pytest.mark.parametrize("packed", [False, True])
def test_any_chunks_through_the_state_give_the_whole(size, packed):
    x, kernel, bias = draw(size)
    run = RUN if packed else None
    whole = causal_convolution_reference(x, kernel, bias, run)
    ends = []
    for lengths in ([9], [1] * 9, [4, 0, 5], [2, 3, 4]):
        state, out, start = initial_state(2, size, CHANNELS), [], 0
        for length in lengths:
            part = slice(start, start + length)
            of_part = None if run is None else run[:, part]
            y, state = causal_convolution(x[:, part], kernel, bias, run=of_part, before=state)
            out.append(y)
            start += length
        np.testing.assert_allclose(np.concatenate(out, axis=1), whole, atol=1e-5)
        ends.append(state)
    for state in ends[1:]:
        chex.assert_trees_all_equal(state, ends[0])


def test_nothing_comes_from_the_future_or_another_run():
    x, kernel, bias = draw(4)
    jacobian = jax.jit(
        jax.jacobian(lambda x: causal_convolution(x[None], kernel, bias, run=jnp.asarray(RUN[:1]))[0][0])
    )(x[0])
    influence = np.abs(jacobian).sum(axis=(1, 3))
    assert np.all(np.triu(influence, 1) == 0)
    assert np.all(influence[RUN[0][:, None] != RUN[0]] == 0)
    assert influence[3, 0] > 0, "past the padding in between"
    assert np.all(influence[RUN[0] == 0] == 0)


def test_bad_input_is_named():
    x, kernel, _ = draw(4)
    with pytest.raises(UsageError, match=r"state has the shape \(3, 3, 3\); expected \(2, 3, 3\)"):
        causal_convolution(x, kernel, before=initial_state(3, 4, CHANNELS))
    with pytest.raises(UsageError, match="size of the short convolution is 0; expected at least 1"):
        ShortConvolution(0)


def test_the_layer():
    x, _, _ = draw(4)
    layer = ShortConvolution(4)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    params = variables["params"]
    assert params["kernel"].shape == (4, CHANNELS)
    assert float(jnp.abs(params["kernel"]).max()) <= 0.5
    y, state = jax.jit(layer.apply)(variables, x, None, layer.initial_state(2, CHANNELS))
    np.testing.assert_allclose(y, causal_convolution_reference(x, params["kernel"], params["bias"]), atol=1e-5)
    np.testing.assert_array_equal(state.x, x[:, -3:])
