"""Hyena's state: its filters are computed once, and read from then on."""

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.layers.mixers.hyena import Hyena


def test_the_filter_is_computed_once():
    mixer, x = Hyena(order=3, length=8), np.random.default_rng(0).normal(size=(2, 8, 4)).astype(np.float32)
    (whole, _), variables = jax.jit(mixer.init_with_output)(jax.random.key(1), x)
    apply = jax.jit(lambda variables, x, state: mixer.apply(variables, x, None, state))
    _, state = apply(variables, x[:, :3], mixer.initial_state(2, 8, 4))
    assert np.all(state.filled)
    assert state.filter.shape == (2, 8, 8)
    expected = np.asarray(whole)[:, 3:4]
    np.testing.assert_allclose(apply(variables, x[:, 3:4], state)[0], expected, atol=1e-6)

    # Another filter network is not asked; another kept filter is.
    other = jax.tree.map(jnp.zeros_like, variables["params"]["filter"])
    unasked = {"params": variables["params"] | {"filter": other}}
    np.testing.assert_allclose(apply(unasked, x[:, 3:4], state)[0], expected, atol=1e-6)
    changed, _ = apply(variables, x[:, 3:4], state.replace(filter=2 * state.filter))
    assert np.max(np.abs(changed - expected)) > 1e-4 * np.max(np.abs(expected))
