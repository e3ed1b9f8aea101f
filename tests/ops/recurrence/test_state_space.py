"""State spaces: HiPPO, discretisation, kernels and recurrences against their definitions and against scipy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.long import long_convolution
from arch_jax.ops.recurrence import state_space as ops

BATCH, TIME, CHANNELS, SIZE = 2, 21, 3, 8
PAIRS = SIZE // 2
RUNS = np.array([[1] * 7 + [2] * 8 + [0] * 3 + [3] * 3, [0, 0] + [4] * 6 + [0] + [4] * 12], np.int32)


def draws(seed=0):
    """A, P, B, C "channels pairs" and delta, away from any special values."""
    rng = np.random.default_rng(seed)
    normal = lambda: rng.normal(size=(CHANNELS, PAIRS)) + 1j * rng.normal(size=(CHANNELS, PAIRS))
    A = -rng.uniform(0.2, 1, (CHANNELS, PAIRS)) + 1j * rng.uniform(0, 9, (CHANNELS, PAIRS))
    return A, 0.5 * normal(), normal(), normal(), rng.uniform(0.01, 0.5, CHANNELS)


def whole(z):
    """Pairs as whole states: the other half is the conjugate."""
    return np.concatenate([z, z.conj()], axis=-1)


def bilinear(A, B, delta):
    """Of matrices, as it is defined."""
    eye = np.eye(len(A))
    left = np.linalg.inv(eye - delta / 2 * A)
    return left @ (eye + delta / 2 * A), left @ (delta * B)


def powers(A_bar, B_bar, C, length):
    """C A_bar^l B_bar, one after another."""
    kernel = []
    for _ in range(length):
        kernel.append(C @ B_bar)
        B_bar = A_bar @ B_bar
    return np.array(kernel)


@pytest.mark.parametrize("size", [2, 8, 64])
def test_hippo_is_normal_plus_low_rank(size):
    """Theorem 1: A = V (Lambda - P P^*) V^*, all of it recovered from one of each conjugate pair."""
    A, B = ops.hippo_legs(size)
    Lambda, P, B_pairs, V = ops.legs_nplr(size)
    twice_real = lambda z: 2 * z.real
    low_rank = twice_real(V @ P)
    np.testing.assert_allclose(twice_real(V * Lambda @ V.conj().T) - np.outer(low_rank, low_rank), A, atol=1e-9)
    np.testing.assert_allclose(twice_real(V @ B_pairs), B, atol=1e-10)
    np.testing.assert_allclose(Lambda.real, -0.5)
    assert (Lambda.imag > 0).all()
    eigenvalues = np.sort(np.linalg.eigvals(A).real) if size < 10 else -np.arange(size, 0, -1)
    np.testing.assert_allclose(eigenvalues, -np.arange(size, 0, -1), atol=1e-6)


def test_initial_frequencies():
    np.testing.assert_allclose(ops.s4d_lin(6).imag, np.pi * np.arange(3))
    np.testing.assert_allclose(ops.s4d_inv(4).imag, 4 / np.pi * np.array([3, 1 / 3]))
    # S4D-Inv approximates the frequencies of HiPPO-LegS (section 4.2 of the paper), most of all the largest.
    inverse, legs = np.sort(ops.s4d_inv(64).imag), np.sort(ops.legs_nplr(64)[0].imag)
    assert abs(inverse[-1] / legs[-1] - 1) < 0.05


@pytest.mark.parametrize("method", ops.DISCRETIZATIONS)
def test_discretization_is_that_of_scipy(method):
    with jax.enable_x64(True):
        A, _, B, _, delta = draws()
        compiled = jax.jit(ops.discretize, static_argnums=3)
        A_bar, B_bar = map(np.asarray, compiled(A, B, delta, method))
        for c in range(CHANNELS):
            for n in range(PAIRS):
                # A complex number as the matrix of its multiplication: scipy's are real.
                matrix = lambda z: np.array([[z.real, -z.imag], [z.imag, z.real]])
                system = (matrix(A[c, n]), matrix(B[c, n]), np.eye(2), np.zeros((2, 2)))
                theirs = scipy.signal.cont2discrete(system, delta[c], method=method)
                np.testing.assert_allclose(matrix(A_bar[c, n]), theirs[0], atol=1e-12)
                np.testing.assert_allclose(matrix(B_bar[c, n]), theirs[1], atol=1e-12)


@pytest.mark.parametrize("length", [1, 16, 21, *(pytest.param(n, marks=pytest.mark.thorough) for n in (2, 7))])
def test_kernels_are_naive_powers(length):
    with jax.enable_x64(True):
        A, P, B, C, delta = draws()

        @jax.jit
        def kernels(A, P, B, C, delta):
            steps = ops.discretize(A, B, delta, "bilinear")
            return ops.dplr_kernel(A, P, B, C, delta, length), ops.diagonal_kernel(*steps, C, length)

        found, diagonal = kernels(A, P, B, C, delta)
        assert found.shape == diagonal.shape == (CHANNELS, length)
        for c in range(CHANNELS):
            full = np.diag(whole(A[c])) - np.outer(whole(P[c]), whole(P[c]).conj())
            for matrix, kernel in ((full, found), (np.diag(whole(A[c])), diagonal)):
                expected = powers(*bilinear(matrix, whole(B[c]), delta[c]), whole(C[c]), length)
                np.testing.assert_allclose(expected.imag, 0, atol=1e-10)
                np.testing.assert_allclose(kernel[c], expected.real, rtol=1e-10, atol=1e-10)


def test_many_frequencies_are_done_in_blocks(monkeypatch):
    with jax.enable_x64(True):
        given = draws()
        kernel = lambda *arrays: ops.dplr_kernel(*arrays, 50)
        found = lambda: jax.jit(jax.value_and_grad(lambda *arrays: jnp.sum(kernel(*arrays) ** 2), range(5)))(*given)
        at_once = found()
        monkeypatch.setattr(ops, "_FREQUENCIES", 8)
        for a, b in zip(jax.tree.leaves(found()), jax.tree.leaves(at_once)):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_slow_states_keep_their_digits_in_float32():
    """Steps of 0.001: 1 - A_bar^L is nearly 0, and would lose its digits as a difference."""
    Lambda, P, B, _ = (np.broadcast_to(x, (1, *x.shape)) for x in ops.legs_nplr(64))
    C = np.random.default_rng(0).normal(size=(1, 32, 2)) @ np.array([1, 1j])
    given = (Lambda, P, B, C, np.array([0.001]))
    exact = powers(
        *bilinear(np.diag(whole(Lambda[0])) - np.outer(whole(P[0]), whole(P[0]).conj()), whole(B[0]), 0.001),
        whole(C[0]),
        100,
    ).real
    single = [jnp.asarray(x, jnp.complex64 if np.iscomplexobj(x) else jnp.float32) for x in given]
    found = jax.jit(ops.dplr_kernel, static_argnums=5)(*single, 100)[0]
    assert np.abs(found - exact).max() < 2e-5 * np.abs(exact).max()


@functools.cache
def arrays():
    return np.random.default_rng(1).normal(size=(BATCH, TIME, CHANNELS)), *draws()


def forms(kind, length=TIME):
    """(u, A, P, B, C, delta) -> y as a convolution, and as a recurrence with more settings."""
    if kind == "dplr":
        by_kernel = lambda u, A, P, B, C, delta: long_convolution(u, ops.dplr_kernel(A, P, B, C, delta, length).T)
        return by_kernel, lambda u, A, P, B, C, delta, *b, **s: ops.dplr_scan(u, A, P, B, C, delta, *b, **s)

    def by_kernel(u, A, P, B, C, delta):
        return long_convolution(u, ops.diagonal_kernel(*ops.discretize(A, B, delta, kind), C, length).T)

    return by_kernel, lambda u, A, P, B, C, delta, *b, **s: ops.diagonal_scan(
        u, *ops.discretize(A, B, delta, kind), C, *b, **s
    )


@pytest.mark.parametrize("kind", ["dplr", "zoh", pytest.param("bilinear", marks=pytest.mark.thorough)])
def test_the_convolution_is_the_recurrence(kind):
    """Values and gradients to everything."""
    by_kernel, by_scan = forms(kind)
    with jax.enable_x64(True):
        weights = np.random.default_rng(2).normal(size=(BATCH, TIME, CHANNELS))

        def both(form):
            loss = lambda *arrays: (jnp.sum(form(*arrays) * weights), form(*arrays))
            return jax.jit(jax.value_and_grad(loss, range(6), has_aux=True))(*arrays())

        (_, y), gradients = both(by_kernel)
        (_, expected), others = both(lambda *arrays: by_scan(*arrays, chunk=4)[0])
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-10)
        for i, (a, b) in enumerate(zip(gradients, others)):
            assert np.abs(b).max() > 0 or (kind != "dplr" and i == 2)
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["dplr", pytest.param("zoh", marks=pytest.mark.thorough)])
def test_runs_and_states(kind):
    """Each run is what it is alone, padding is passed over, and a state goes on where the tokens stopped."""
    _, by_scan = forms(kind)
    with jax.enable_x64(True):
        u, *rest = arrays()
        real = RUNS > 0
        starts = np.array([[t == np.argmax(row == row[t]) for t in range(TIME)] for row in RUNS]) & real
        settings = {"starts": starts, "real": real}
        scan = jax.jit(by_scan)
        y, last = scan(u, *rest, **settings)
        y = np.asarray(y)
        assert not y[~real].any()
        for row, number in ((0, 1), (0, 2), (0, 3), (1, 4)):
            place = np.flatnonzero(RUNS[row] == number)
            alone = jax.jit(forms(kind, len(place))[0])(u[row : row + 1, place], *rest)[0]
            np.testing.assert_allclose(y[row, place], alone, rtol=1e-10, atol=1e-10)
        x, outs = None, []
        for start, stop in ((0, 1), (1, 9), (9, 21)):
            part = slice(start, stop)
            out, x = scan(u[:, part], *rest, x, **{name: flag[:, part] for name, flag in settings.items()})
            outs.append(out)
        np.testing.assert_allclose(np.concatenate(outs, axis=1), y, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(x, last, rtol=1e-10, atol=1e-12)


def test_mistakes_are_named():
    A, _, B, _, delta = (jnp.asarray(x) for x in draws())
    cases = [
        (lambda: ops.legs_nplr(7), "size 7; expected an even number .*the nearest is 8"),
        (lambda: ops.s4d_lin(0), "size 0; expected an even number of at least 2"),
        (lambda: ops.discretize(A, B, delta, "zho"), "unknown discretization 'zho'; the nearest is 'zoh'"),
    ]
    for call, message in cases:
        with pytest.raises(UsageError, match=message):
            call()
