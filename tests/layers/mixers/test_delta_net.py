"""Delta networks: recall, reflection, the gate that falls away, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.delta_net import DeltaNet, GatedDeltaNet
from arch_jax.layers.mixers.retention import Retention
from arch_jax.ops.recurrence.matrix import delta_rule

WIDTH = 8


def test_orthonormal_keys_are_recalled_exactly():
    """And a key that comes again answers with its last value alone."""
    rng = np.random.default_rng(0)
    keys = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    k = jnp.asarray(np.concatenate([keys, keys[1:3], keys]), jnp.float32)[None, :, None]
    v = jnp.asarray(rng.normal(size=(12, 4)), jnp.float32)[None, :, None]
    beta = jnp.ones((1, 12, 1)).at[:, 7:].set(0)  # the last five only ask
    y, _ = jax.jit(functools.partial(delta_rule, chunk=4))(k, k, v, beta)
    np.testing.assert_allclose(y[0, 7:, 0], v[0, [0, 5, 6, 3, 4], 0], atol=1e-5)


def test_twice_the_sigmoid_turns_the_memory_round():
    """beta = 2 with a key of length 1 is a reflection, and a sign that changes is parity (2411.12537, section 3)."""
    ones = jnp.ones((1, 7, 1, 1))
    tokens = jnp.asarray([1, 0, 1, 1, 0, 1, 1])
    apply = jax.jit(delta_rule)
    state = apply(ones[:, :1], ones[:, :1], ones[:, :1], jnp.ones((1, 1, 1)))[1]
    y, _ = apply(ones, ones, 0 * ones, 2.0 * tokens[None, :, None], state=state)
    np.testing.assert_array_equal(y[0, :, 0, 0], 1 - 2 * (np.cumsum(tokens) % 2))


def test_without_decay_and_gate_it_is_delta_net():
    x = jax.random.normal(jax.random.key(0), (2, 9, WIDTH))
    settings = {"heads": 2, "negative_eigenvalues": True, "initial_std": 0.5}
    gated, plain = GatedDeltaNet(gate=False, **settings), DeltaNet(**settings)
    params, apply = jax.jit(gated.init)(jax.random.key(1), x)["params"], jax.jit(gated.apply)
    faded = apply({"params": params}, x)[0]
    params |= {"a_log": jnp.full_like(params["a_log"], -jnp.inf)}  # A = 0, so alpha = 1
    kept = apply({"params": params}, x)[0]
    of_plain = {n: p for n, p in params.items() if n not in ("a_log", "decay_bias", "decay")}
    expected = jax.jit(plain.apply)({"params": of_plain}, x)[0]
    np.testing.assert_allclose(kept, expected, atol=1e-6)
    assert float(jnp.abs(faded - expected).max()) > 1e-3


def test_more_heads_of_values():
    """Two heads of values that read one key are two layers with the same key."""
    x = jax.random.normal(jax.random.key(0), (2, 9, WIDTH))
    grouped = GatedDeltaNet(heads=1, value_heads=2, head_size=4, value_size=3, convolution=0, initial_std=0.5)
    params = jax.jit(grouped.init)(jax.random.key(1), x)["params"]
    whole = jax.jit(grouped.apply)({"params": params}, x)[0]
    one = jax.jit(GatedDeltaNet(heads=1, head_size=4, value_size=3, convolution=0).apply)
    total = 0.0
    for h in range(2):
        cut = lambda p, n, h=h: p[..., h * n : (h + 1) * n]
        part = params | {n: {"kernel": cut(params[n]["kernel"], 3)} for n in ("value", "gate")}
        part |= {n: {"kernel": cut(params[n]["kernel"], 1)} for n in ("beta", "decay")}
        part |= {n: cut(params[n], 1) for n in ("a_log", "decay_bias")}
        part |= {"output": {"kernel": params["output"]["kernel"][3 * h : 3 * h + 3]}}
        total = total + one({"params": part}, x)[0]
    np.testing.assert_allclose(whole, total, atol=1e-5)


def test_initial_decays():
    """A in (0, 16) and steps in (0.001, 0.1)."""
    mixer = GatedDeltaNet(heads=256, head_size=1)
    params = jax.jit(mixer.init)(jax.random.key(0), jnp.ones((1, 1, 4)))["params"]
    a, step = np.exp(params["a_log"]), np.asarray(jax.nn.softplus(params["decay_bias"]))
    assert 0 < a.min() < 1
    assert 15 < a.max() < 16
    assert 0.001 <= step.min() < 0.0015
    assert 0.07 < step.max() <= 0.1001


@pytest.mark.parametrize("length", [0, 1])
def test_hardly_any_tokens(length):
    mixer = GatedDeltaNet(heads=2)
    params = jax.jit(mixer.init)(jax.random.key(1), jnp.ones((2, 3, WIDTH)))
    state = mixer.initial_state(2, 0, WIDTH)
    y, after = jax.jit(mixer.apply)(params, jnp.ones((2, length, WIDTH)), None, state)
    assert y.shape == (2, length, WIDTH)
    np.testing.assert_array_equal(after.at.last_position, length - 1)


def test_bad_input():
    x = jnp.ones((2, 3, WIDTH))
    with pytest.raises(UsageError, match=r"heads of delta_net is 3.*nearest is"):
        jax.eval_shape(DeltaNet(heads=3).init, jax.random.key(0), x)
    with pytest.raises(UsageError, match="value_heads of gated_delta_net is 3; expected a multiple of its 2"):
        GatedDeltaNet(heads=2, value_heads=3)
    with pytest.raises(UsageError, match="convolution of delta_net is -1"):
        DeltaNet(convolution=-1)
    with pytest.raises(UsageError, match=r"chunk .*0"):
        jax.eval_shape(DeltaNet(heads=2, chunk=0).init, jax.random.key(0), x)
    mixer = DeltaNet(heads=2)
    params = jax.jit(mixer.init)(jax.random.key(0), x)
    with pytest.raises(UsageError, match="3 rows; expected 2"):
        jax.eval_shape(mixer.apply, params, x, None, mixer.initial_state(3, 0, WIDTH))
    with pytest.raises(UsageError, match="RetentionState as its state; expected a DeltaState"):
        jax.eval_shape(mixer.apply, params, x, None, Retention(heads=2).initial_state(2, 0, WIDTH))
