"""Retention against the equations of torchscale's multiscale_retention, written out in numpy.

torchscale itself needs fairscale and an old torch. Its three divisions of the scores, which its norm takes out again,
are here, so that leaving them out is tested too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.mixers.retention import Retention


def by_equations(params, x, heads, gamma, norm):
    """MSR(X) of 2307.08621, equations 5 and 8, with the "retention score normalization" of section 2.1, in float64."""
    w = {name: np.asarray(layer["kernel"], np.float64) for name, layer in params.items()}
    time = x.shape[1]
    q, k, v, g = ((x @ w[n]).reshape(*x.shape[:2], heads, -1) for n in ("query", "key", "value", "gate"))
    half = q.shape[-1] // 2
    theta = 10_000.0 ** -np.linspace(0, 1, half)
    turn = np.exp(1j * np.arange(time)[:, None] * theta)[:, None]
    # A pair of dimensions is a complex number. Theirs stand side by side, ours half a head apart.
    q, k = ((y[..., :half] + 1j * y[..., half:]) * turn for y in (q, k))
    n, m = np.arange(time)[:, None], np.arange(time)
    decays = np.where(n >= m, gamma[:, None, None] ** (n - m).clip(0), 0)  # D, "heads n m"
    decays = decays / np.sqrt(decays.sum(-1, keepdims=True))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k.conj()).real / np.sqrt(2 * half) * decays
    scores = scores / np.maximum(np.abs(scores.sum(-1, keepdims=True)), 1)
    r = np.einsum("bhnm,bmhv->bnhv", scores, v)
    if norm == "group":
        r = r - r.mean(-1, keepdims=True)
    y = r / np.sqrt((r**2).mean(-1, keepdims=True))
    return (g / (1 + np.exp(-g)) * y).reshape(*x.shape[:2], -1) @ w["output"]


@pytest.mark.parametrize(
    ("settings", "gamma"),
    [
        ({"heads": 2}, 1 - 2.0 ** np.array([-5, -6])),
        (
            {"heads": 3, "head_size": 4, "value_size": 5, "norm": "rms", "form": "recurrent"},
            1 - 2.0 ** -np.arange(5, 8),
        ),
        ({"heads": 1, "form": "chunked", "chunk": 5, "longest": 100.0}, np.array([1 - 1 / 32])),
    ],
)
def test_outputs(settings, gamma):
    x = np.random.default_rng(0).normal(size=(2, 23, 12))
    mixer = Retention(initial_std=0.5, norm_epsilon=1e-12, **settings)
    params = jax.jit(mixer.init)(jax.random.key(0), jnp.asarray(x, jnp.float32))["params"]
    expected = by_equations(params, x, settings["heads"], gamma, settings.get("norm", "group"))
    y = jax.jit(mixer.apply)({"params": params}, jnp.asarray(x, jnp.float32))[0]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(y, expected, atol=1e-5 * np.abs(expected).max())
