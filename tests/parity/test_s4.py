"""S4 and S4D layers against scipy's simulation of the same systems as dense real matrices."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special

from arch_jax.layers.mixers.ssm.s4 import S4, S4D
from arch_jax.ops.recurrence.state_space import hippo_legs, legs_nplr

BATCH, TIME, WIDTH, STATE = 2, 100, 4, 16


@functools.cache
def layer(kind):
    """A mixer, its parameters as drawn but for biases, and an input."""
    mixer = {"s4": S4(state=STATE), "s4d": S4D(state=STATE), "bilinear": S4D(STATE, discretization="bilinear")}[kind]
    x = jax.random.normal(jax.random.key(0), (BATCH, TIME, WIDTH))
    params = mixer.init(jax.random.key(1), x)["params"]
    for i, name in enumerate(("output", "gate")):
        params["glu"][name]["bias"] = jax.random.normal(jax.random.key(2 + i), (WIDTH,))
    return mixer, params, x


def their_system(kind, params, channel):
    """A, B, C, D of one channel in a real basis."""
    C = params["C"][channel] @ np.array([1, 1j])
    D = np.array([[params["D"][channel]]])
    if kind == "s4":
        A, B = hippo_legs(STATE)  # the published matrix itself, before anything is diagonalised
        V = legs_nplr(STATE)[3]
        return A, B[:, None], 2 * (C @ V.conj().T).real[None], D
    A = -np.exp(params["log_A_real"][channel]) + 1j * np.asarray(params["A_imag"][channel])
    # Real and imaginary part of each pair, as a rotation.
    pairs = len(A)
    A = np.block([[np.diag(A.real), -np.diag(A.imag)], [np.diag(A.imag), np.diag(A.real)]])
    B = np.concatenate([np.ones(pairs), np.zeros(pairs)])
    return A, B[:, None], 2 * np.concatenate([C.real, -C.imag])[None], D


@pytest.mark.parametrize("kind", ["s4", "s4d", "bilinear"])
def test_outputs(kind):
    mixer, params, x = layer(kind)
    expected = np.zeros(x.shape)
    for channel in range(WIDTH):
        delta = math.exp(params["log_step"][channel])
        system = tuple(np.asarray(part, np.float64) for part in their_system(kind, params, channel))
        # scipy's bilinear method changes C and D as well; the paper's does not.
        A, B, *_ = scipy.signal.cont2discrete(system, delta, method="zoh" if kind == "s4d" else "bilinear")
        for row in range(BATCH):
            u = np.asarray(x[row, :, channel], np.float64)
            expected[row, :, channel] = simulate(A, B, *system[2:], u)
    inner = expected * 0.5 * (1 + scipy.special.erf(expected / math.sqrt(2)))
    affine = lambda name: inner @ np.asarray(params["glu"][name]["kernel"]) + np.asarray(params["glu"][name]["bias"])
    expected = affine("output") * scipy.special.expit(affine("gate"))
    largest = np.abs(expected).max()
    assert largest > 0.3
    ids = jnp.ones((BATCH, TIME), jnp.int32)  # makes it a recurrence
    for segment_ids in (None, ids):
        y, _ = jax.jit(mixer.apply)({"params": params}, x, segment_ids)
        np.testing.assert_allclose(y, expected, atol=1e-5 * max(1, largest))


def simulate(A, B, C, D, u):
    """y_t = C x_t + D u_t with x_t = A x_{t-1} + B u_t: S4 reads the state after the input, scipy's before it."""
    _, y, _ = scipy.signal.dlsim((A, B, C @ A, C @ B + D, 1.0), u)
    return y[:, 0]
