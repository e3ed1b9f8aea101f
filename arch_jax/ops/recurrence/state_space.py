"""Linear time-invariant state spaces, of one input and one output for each channel: S4 and S4D.

    x'(t) = A x(t) + B u(t),   y(t) = C x(t)        becomes, at steps of Delta,
    x_t = A_bar x_{t-1} + B_bar u_t,   y_t = C x_t,   so that   y = K * u   with   K_l = C A_bar^l B_bar

(K * u is `ops.long_convolution`.)

A is diagonal (S4D) or diagonal plus low rank, Lambda - P P^* (S4), after a change of basis that makes it complex. Its
entries come in conjugate pairs, and with real inputs so do those of x: one of each pair is kept, "pairs" of them for a
state of twice as many numbers, and sums over the state are twice the real part of sums over the pairs.

Sources: Gu, Goel and Re, "Efficiently Modeling Long Sequences with Structured State Spaces", arXiv 2111.00396 (S4); Gu,
Gupta, Goel and Re, "On the Parameterization and Initialization of Diagonal State Space Models", 2206.11893 (S4D).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Complex, Float

from arch_jax.errors import UsageError, unknown
from arch_jax.ops.recurrence.linear import scan_in_chunks

__all__ = [
    "DISCRETIZATIONS",
    "diagonal_kernel",
    "diagonal_scan",
    "discretize",
    "dplr_kernel",
    "dplr_scan",
    "hippo_legs",
    "legs_nplr",
    "s4d_inv",
    "s4d_lin",
]

DISCRETIZATIONS = ("zoh", "bilinear")
#: Powers of anything smaller are 0 to float32.
_FORGOTTEN = 1e-30
#: Frequencies of a kernel that are evaluated at once.
_FREQUENCIES = 1024


def hippo_legs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """HiPPO-LegS: A "size size" and B "size", by which x holds the input's Legendre coefficients, in float64.

    Source: arXiv 2111.00396, equation 2.
    """
    n = np.arange(size)
    root = np.sqrt(2 * n + 1)
    return -(np.tril(np.outer(root, root), -1) + np.diag(n + 1.0)), root


@functools.lru_cache(maxsize=32)
def legs_nplr(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """HiPPO-LegS as a normal matrix plus low rank, diagonalised: (Lambda, P, B, V), in complex128.

    A = V (Lambda - P P^*) V^* and B_dense = V B, where V is unitary; "pairs" columns and entries are returned, those
    with a positive imaginary part of Lambda. Phases are such that B is real and positive.

    Raises:
      UsageError: `size` is odd or below 2.

    Source: arXiv 2111.00396, theorem 1 and appendix C.1.
    """
    pairs = _pairs(size)
    A, B = hippo_legs(size)
    P = np.sqrt(np.arange(size) + 0.5)
    # A + P P^T is -1/2 on the diagonal and skew-symmetric beside it: i times a Hermitian matrix, less a half.
    skew = A + np.outer(P, P) + 0.5 * np.eye(size)
    frequencies, V = np.linalg.eigh(-1j * skew)
    frequencies, V = frequencies[-pairs:], V[:, -pairs:]
    overlap = V.conj().T @ B
    V = V * (overlap / np.abs(overlap))
    found = (-0.5 + 1j * frequencies, V.conj().T @ P, V.conj().T @ B, V)
    for array in found:
        array.setflags(write=False)  # shared by all callers
    return found


def s4d_lin(size: int) -> np.ndarray:
    """A_n = -1/2 + i pi n, "pairs" of them: S4D-Lin (arXiv 2206.11893, equation 9)."""
    return -0.5 + 1j * np.pi * np.arange(_pairs(size))


def s4d_inv(size: int) -> np.ndarray:
    """A_n = -1/2 + i N/pi (N/(2n+1) - 1), "pairs" of them: S4D-Inv (arXiv 2206.11893, equation 8)."""
    return -0.5 + 1j * size / np.pi * (size / (2 * np.arange(_pairs(size)) + 1) - 1)


def _pairs(size: int) -> int:
    if size < 2 or size % 2:
        near = max(2, size + 1)
        raise UsageError(
            f"the state of a state space has size {size}; expected an even number of at least 2, since its entries "
            f"come in conjugate pairs (the nearest is {near})"
        )
    return size // 2


def discretize(
    A: Complex[Array, "channels pairs"],
    B: Complex[Array, "channels pairs"],
    delta: Float[Array, "channels"],
    method: str = "zoh",
) -> tuple[Complex[Array, "channels pairs"], Complex[Array, "channels pairs"]]:
    """A_bar and B_bar of a diagonal A at steps of delta.

        zoh        A_bar = exp(Delta A),   B_bar = A^-1 (exp(Delta A) - 1) B
        bilinear   A_bar = (1 - Delta A/2)^-1 (1 + Delta A/2),   B_bar = (1 - Delta A/2)^-1 Delta B

    Raises:
      UsageError: an unknown method.

    Source: arXiv 2206.11893, section 2 (equations 3 and 4).
    """
    if method not in DISCRETIZATIONS:
        raise unknown("discretization", method, DISCRETIZATIONS)
    z = delta[:, None] * A
    if method == "zoh":
        return jnp.exp(z), B * jnp.expm1(z) / A
    return (1 + z / 2) / (1 - z / 2), B * delta[:, None] / (1 - z / 2)


def diagonal_kernel(
    A_bar: Complex[Array, "channels pairs"],
    B_bar: Complex[Array, "channels pairs"],
    C: Complex[Array, "channels pairs"],
    length: int,
) -> Float[Array, "channels length"]:
    """K_l = 2 Re sum_n C_n A_bar_n^l B_bar_n: a product with a Vandermonde matrix.

    With l = i b + j and b near the root of the length it is a matrix product of i and j, of which 2 sqrt(length)
    powers are taken instead of `length`.

    Source: arXiv 2206.11893, equation 6.
    """
    block = max(1, round(length**0.5))
    rows = -(-length // block)
    real = functools.partial(jnp.arange, dtype=A_bar.real.dtype)
    # A state that is forgotten at once would have an infinite logarithm.
    logarithm = jnp.log(jnp.where(jnp.abs(A_bar) < _FORGOTTEN, _FORGOTTEN, A_bar))[..., None]
    left = (C * B_bar)[..., None] * jnp.exp(logarithm * (block * real(rows)))
    right = jnp.exp(logarithm * real(block))
    # 2 Re of a complex product, as a real product of twice as many.
    left = jnp.concatenate([left.real, -left.imag], axis=1)
    right = jnp.concatenate([right.real, right.imag], axis=1)
    kernel = 2 * jnp.einsum("cni,cnj->cij", left, right, precision=lax.Precision.HIGHEST)
    return kernel.reshape(len(A_bar), -1)[:, :length]


def dplr_kernel(
    Lambda: Complex[Array, "channels pairs"],
    P: Complex[Array, "channels pairs"],
    B: Complex[Array, "channels pairs"],
    C: Complex[Array, "channels pairs"],
    delta: Float[Array, "channels"],
    length: int,
) -> Float[Array, "channels length"]:
    """K_l = C A_bar^l B_bar of A = Lambda - P P^*, by the bilinear method.

    The kernel's generating function is known in closed form at the roots of unity, z = exp(-i theta):

        sum_{l < length} K_l z^l = C~ (1 - A_bar z)^-1 B_bar,        C~ = C (1 - A_bar^length)

    where the resolvent of a diagonal matrix is a Cauchy kernel, and the low rank is corrected by the Woodbury
    identity; an inverse Fourier transform gives K. Multiplied out with sines and cosines of theta/2, nothing is
    infinite at z = -1. C~ is computed by squaring 1 - A_bar, without the cancellation of 1 minus nearly 1.

    Source: arXiv 2111.00396, algorithm 1 and appendix C.3.
    """
    if length == 0:
        return jnp.zeros((len(delta), 0), delta.dtype)
    C = _truncated(Lambda, P, B, C, delta, length)
    half_step = delta[:, None] / 2
    z = half_step * Lambda
    Q = P.conj()
    products = jnp.stack([C * B, C * P, Q * B, Q * P], axis=-1)  # "channels pairs 4"
    # v / (i s - c z) + its conjugate partner has a real denominator but for one term: all four sums share it.
    of_sine = 2 * half_step[..., None] * products.real
    of_cosine = 2 * half_step[..., None] * (products * z.conj()[..., None]).real

    def at(theta: Array) -> Array:
        """The generating function at exp(-i theta), times exp(-i theta / 2): "channels frequencies"."""
        s, c = jnp.sin(theta / 2)[:, None], jnp.cos(theta / 2)[:, None]
        modulus = (c * jnp.abs(z)[:, None]) ** 2 - s**2
        weights = 1 / lax.complex(modulus, -2 * s * c * z.real[:, None])  # "channels frequencies pairs"
        parts = jnp.concatenate([of_sine, of_cosine], axis=-1)
        total = functools.partial(jnp.einsum, "cfn,cnk->cfk", precision=lax.Precision.HIGHEST)
        sums = lax.complex(total(weights.real, parts), total(weights.imag, parts))
        q = 1j * s * sums[..., :4] - c * sums[..., 4:]
        q00, q01, q10, q11 = jnp.moveaxis(q, -1, 0)
        c = c[:, 0]
        return jnp.exp(0.5j * theta) * (q00 - c * q01 * q10 / (1 + c * q11))

    theta = jnp.arange(length // 2 + 1, dtype=delta.dtype) * (2 * np.pi / length)
    return jnp.fft.irfft(_in_blocks(at, theta), n=length)


def _in_blocks(at: Callable[[Array], Array], theta: Array) -> Array:
    """`at` of all frequencies, "channels frequencies"; many are done some at a time, and again for the gradient."""
    if len(theta) <= _FREQUENCIES:
        return at(theta)
    blocks = jnp.pad(theta, (0, -len(theta) % _FREQUENCIES)).reshape(-1, _FREQUENCIES)
    found = lax.map(jax.checkpoint(at, prevent_cse=False), blocks)  # "blocks channels frequencies"
    return jnp.moveaxis(found, 0, 1).reshape(found.shape[1], -1)[:, : len(theta)]


def _twice_real(a: Array, b: Array) -> Array:
    """sum over the whole state of a b: twice the real part of that over the pairs, with the axis kept."""
    return 2 * jnp.sum((a * b).real, axis=-1, keepdims=True)


def _dplr_parts(Lambda, P, delta):
    """Functions v -> A v and v -> (2/Delta - A)^-1 v, of "... channels pairs", and 2/Delta (appendix C.2)."""
    rate = 2 / delta[:, None]
    D, Q = 1 / (rate - Lambda), P.conj()
    share = 1 + _twice_real(Q, D * P)
    times = lambda v: Lambda * v - P * _twice_real(Q, v)
    # Woodbury: (2/Delta - Lambda + P Q)^-1 = D - D P (1 + Q D P)^-1 Q D
    solve = lambda v: D * (v - P * (_twice_real(Q, D * v) / share))
    return times, solve, rate


def _truncated(Lambda, P, B, C, delta, length):
    """C~ = C (1 - A_bar^length), from E_m = 1 - A_bar^m: E_1 = -2 (2/Delta - A)^-1 A and E_2m = 2 E_m - E_m^2.

    In real and imaginary parts, one under the other, these are real matrices. With D = (2/Delta - Lambda)^-1 and
    Q = P^*, the Woodbury identity makes (2/Delta - A)^-1 A = D Lambda - (D P) (2/Delta Q D) / (1 + Q D P).
    """
    pairs, rate = Lambda.shape[1], 2 / delta[:, None]
    D, Q = 1 / (rate - Lambda), P.conj()
    eye = jnp.eye(pairs, dtype=delta.dtype)
    across = lambda z: jnp.concatenate([2 * z.real, -2 * z.imag], axis=-1)[:, None]  # x -> 2 Re(z x), as a row
    down = lambda z: jnp.concatenate([z.real, z.imag], axis=-1)[:, :, None]
    z = (D * Lambda)[:, None]
    diagonal = jnp.block([[eye * z.real, -eye * z.imag], [eye * z.imag, eye * z.real]])
    share = 1 + _twice_real(Q, D * P)[..., None]
    E = -2 * (diagonal - down(D * P) * across(rate * Q * D) / share)
    row = across(C)
    found = jnp.zeros_like(row)
    while length:
        if length % 2:  # 1 - A_bar^(a+b) = (1 - A_bar^a) + A_bar^a (1 - A_bar^b)
            found = found + _product(row - found, E)
        length //= 2
        E = 2 * E - _product(E, E) if length else E
    return lax.complex(found[:, 0, :pairs], -found[:, 0, pairs:]) / 2


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def diagonal_scan(
    u: Float[Array, "batch time channels"],
    A_bar: Complex[Array, "channels pairs"],
    B_bar: Complex[Array, "channels pairs"],
    C: Complex[Array, "channels pairs"],
    before: Complex[Array, "batch channels pairs"] | None = None,
    *,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Array, "batch time channels"], Complex[Array, "batch channels pairs"]]:
    """x_t = A_bar x_{t-1} + B_bar u_t and y_t = 2 Re(C x_t), token by token: y, and the last x.

    The gradient keeps x between chunks only.

    Args:
      before: x_0; 0 by default.
      starts, real: tokens before which x is set to 0, and tokens that are no padding, which x doesn't notice.
      chunk: tokens in a chunk, at least 1.

    Raises:
      UsageError: `chunk` is below 1.
    """
    advance = lambda x, u: A_bar * x + B_bar * u[..., None]
    return _scan(advance, u, C, before, starts, real, chunk)


def dplr_scan(
    u: Float[Array, "batch time channels"],
    Lambda: Complex[Array, "channels pairs"],
    P: Complex[Array, "channels pairs"],
    B: Complex[Array, "channels pairs"],
    C: Complex[Array, "channels pairs"],
    delta: Float[Array, "channels"],
    before: Complex[Array, "batch channels pairs"] | None = None,
    *,
    starts: Bool[Array, "batch time"] | None = None,
    real: Bool[Array, "batch time"] | None = None,
    chunk: int = 64,
) -> tuple[Float[Array, "batch time channels"], Complex[Array, "batch channels pairs"]]:
    """The recurrence whose convolution has `dplr_kernel`, with O(state) work a token and channel; else `diagonal_scan`.

        x_t = (2/Delta - A)^-1 ((2/Delta + A) x_{t-1} + 2 B u_t),   A = Lambda - P P^*

    Source: arXiv 2111.00396, appendix C.2.
    """
    times, solve, rate = _dplr_parts(Lambda, P, delta)
    advance = lambda x, u: solve(rate * x + times(x) + 2 * B * u[..., None])
    return _scan(advance, u, C, before, starts, real, chunk)


def _scan(advance, u, C, before, starts, real, chunk):
    before = jnp.zeros((u.shape[0], *C.shape), C.dtype) if before is None else before.astype(C.dtype)

    def body(x, token):
        u, start, real = token
        new = advance(x if start is None else jnp.where(start[:, None, None], 0, x), u)
        y = _twice_real(C, new)[..., 0]
        if real is None:
            return new, y
        return jnp.where(real[:, None, None], new, x), jnp.where(real[:, None], y, 0)

    tokens = jax.tree.map(lambda array: array.swapaxes(0, 1), (u, starts, real))
    if u.shape[1] == 1:  # decoding: a loop of one step would only add overhead
        x, y = body(before, jax.tree.map(lambda array: array[0], tokens))
        return y[:, None], x
    x, y = scan_in_chunks(body, before, tokens, chunk=chunk)
    return y.swapaxes(0, 1), x
