"""RWKV's recurrences against their definitions, in all forms, in parts, and with keys that would overflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.recurrence import wkv as ops
from arch_jax.ops.recurrence.linear import resets
from arch_jax.ops.recurrence.matrix import delta_rule
from arch_jax.ops.recurrence.wkv import generalised_delta_rule_reference, wkv_reference
from arch_jax.ops.segments import runs_and_positions

# Compiled whole: op by op, every small operation would be compiled on its own.
wkv = jax.jit(ops.wkv, static_argnames=("form", "chunk"))
generalised_delta_rule = jax.jit(ops.generalised_delta_rule, static_argnames="chunk")
token_shift = jax.jit(ops.token_shift)

IDS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [0, 4, 0, 0, 4, 7, 4, 4, 0]], np.int32)
FORMS = ("sequential", "chunked", "associative")


def inputs(seed=0, spread=1.0, shape=(2, 9, 3)):
    rng = np.random.default_rng(seed)
    k, v = spread * rng.normal(size=shape), rng.normal(size=shape)
    return k, v, -np.exp(rng.normal(size=shape[-1])), rng.normal(size=shape[-1])


def masks(ids):
    run, both = jax.jit(lambda ids: (runs_and_positions(ids)[0], resets(*runs_and_positions(ids)[:2])))(ids)
    return dict(zip(("starts", "real"), map(np.asarray, both))), np.asarray(run)


@functools.partial(jax.jit, static_argnames=("form", "chunk"))
def value_and_gradients(arrays, target, starts, real, form, chunk=4):
    def loss(arrays):
        y, state = wkv(*arrays, starts=starts, real=real, form=form, chunk=chunk)
        return jnp.sum(jnp.where(real[..., None], y, 0) * target) + jnp.sum(state.a / state.b), y

    return jax.value_and_grad(loss, has_aux=True)(arrays)


@pytest.mark.parametrize("form", FORMS)
def test_wkv_is_its_definition_and_all_forms_are_one(form):
    with jax.enable_x64(True):
        arrays = inputs()
        target = np.random.default_rng(1).normal(size=arrays[0].shape)
        chosen, run = masks(IDS)
        (_, y), gradients = value_and_gradients(arrays, target, **chosen, form=form)
        expected = wkv_reference(*arrays, run)
        np.testing.assert_allclose(np.where(IDS[..., None] > 0, y, 0), expected, atol=1e-10)
        _, others = value_and_gradients(arrays, target, **chosen, form="sequential", chunk=64)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), gradients, others)


def test_the_gradient_is_that_of_the_definition():
    """The stabiliser has no gradient of its own: finite differences of the oracle say the same."""
    with jax.enable_x64(True):
        arrays = inputs(seed=2, shape=(1, 5, 2))
        target = np.random.default_rng(3).normal(size=(1, 5, 2))
        gradients = jax.jit(jax.grad(lambda arrays: jnp.sum(wkv(*arrays)[0] * target)))(arrays)
        for which, gradient in enumerate(map(np.asarray, gradients)):
            for at in np.ndindex(*gradient.shape):
                moved = [[np.array(a) for a in arrays] for _ in range(2)]
                moved[0][which][at] += 1e-5
                moved[1][which][at] -= 1e-5
                up, down = (np.sum(wkv_reference(*m) * target) for m in moved)
                assert float(gradient[at]) == pytest.approx((up - down) / 2e-5, abs=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_large_keys_do_not_overflow(form):
    k, v, d, u = inputs(seed=4, spread=300.0)
    y, state = wkv(*(a.astype(np.float32) for a in (k, v, d, u)), form=form, chunk=4)
    np.testing.assert_allclose(y, wkv_reference(k, v, d, u), atol=1e-4)  # exponents near 1e3, to 6e-8 of them
    assert all(np.isfinite(part).all() for part in state)


@pytest.mark.parametrize("lengths", [[9], [1] * 9, [4, 0, 5]])
def test_wkv_in_parts(lengths):
    arrays = tuple(a.astype(np.float32) for a in inputs(seed=5))
    chosen, run = masks(IDS)
    state, out, at = None, [], 0
    for length in lengths:
        part = slice(at, at + length)
        k, v = (a[:, part] for a in arrays[:2])
        own = {name: mask[:, part] for name, mask in chosen.items()}
        y, state = wkv(k, v, *arrays[2:], **own, state=state)
        out.append(y)
        at += length
    y = np.where(IDS[..., None] > 0, np.concatenate(out, axis=1), 0)
    np.testing.assert_allclose(y, wkv_reference(*arrays, run), atol=1e-5)


def test_token_shift():
    x = np.arange(1, 10, dtype=np.float32)[None, :, None]
    np.testing.assert_array_equal(np.ravel(token_shift(x)[0]), np.arange(9))
    chosen, _ = masks(IDS)
    rows = np.broadcast_to(x, (2, 9, 1))
    shifted, last = token_shift(rows, None, **chosen)
    expected = [[0, 1, 2, 0, 4, 5, 6, 0, 8], [0, 0, 0, 0, 2, 0, 0, 7, 0]]
    np.testing.assert_array_equal(np.where(IDS > 0, np.asarray(shifted)[..., 0], 0), expected)
    np.testing.assert_array_equal(last, [[9], [8]])
    first, carried = token_shift(rows[:, :4], None, **{name: mask[:, :4] for name, mask in chosen.items()})
    second, after = token_shift(rows[:, 4:], carried, **{name: mask[:, 4:] for name, mask in chosen.items()})
    both = np.concatenate([first, second], axis=1)[..., 0]
    np.testing.assert_array_equal(np.where(IDS > 0, both, 0), expected)
    np.testing.assert_array_equal(after, last)
    assert ops.token_shift(jnp.asarray(rows[:, :0]), carried)[1] is carried


def matrices(seed=0, time=9, heads=2, dim=3, vdim=4):
    rng = np.random.default_rng(seed)
    draw = lambda *last: rng.normal(size=(2, time, heads, *last))
    kappa = draw(dim)
    kappa /= np.linalg.norm(kappa, axis=-1, keepdims=True)
    return draw(dim), -np.exp(draw(dim)), draw(dim), draw(vdim), kappa, rng.uniform(size=kappa.shape)


def test_the_generalised_delta_rule_is_its_definition():
    with jax.enable_x64(True):
        arrays = matrices()
        chosen, run = masks(IDS)
        y, state = generalised_delta_rule(*arrays, **chosen, chunk=4)
        y = np.asarray(y)
        for row, number in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)):
            here = run[row] == number
            alone = generalised_delta_rule_reference(*(a[row : row + 1, here] for a in arrays))
            np.testing.assert_allclose(y[row : row + 1, here], alone, atol=1e-10)
        parts, s = [], None
        for at in range(9):
            own = {name: mask[:, at : at + 1] for name, mask in chosen.items()}
            part, s = generalised_delta_rule(*(a[:, at : at + 1] for a in arrays), **own, state=s)
            parts.append(part)
        real = IDS[..., None, None] > 0
        np.testing.assert_allclose(np.where(real, np.concatenate(parts, axis=1), 0), np.where(real, y, 0), atol=1e-10)
        np.testing.assert_allclose(s, state, atol=1e-10)


def test_the_delta_rule_is_a_special_case():
    """No decay, the removed direction the key itself, one rate for all channels: DeltaNet's rule."""
    with jax.enable_x64(True):
        r, _, _, v, kappa, rate = matrices(seed=1)
        beta = rate[..., :1]
        y, _ = generalised_delta_rule(r, np.zeros_like(r), beta * kappa, v, kappa, np.broadcast_to(beta, r.shape))
        np.testing.assert_allclose(y, jax.jit(delta_rule)(r, kappa, v, beta[..., 0])[0], atol=1e-10)


def test_its_gradient_does_not_depend_on_the_chunks():
    with jax.enable_x64(True):
        arrays = matrices(seed=2, time=7)
        loss = lambda arrays, chunk: jnp.sum(jnp.sin(generalised_delta_rule(*arrays, chunk=chunk)[0]))
        one, other = (jax.jit(jax.grad(loss), static_argnums=1)(arrays, chunk) for chunk in (3, 64))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one, other)


def test_bad_input():
    arrays = inputs()
    with pytest.raises(UsageError, match="chunked"):
        wkv(*arrays, form="chunkd")
    with pytest.raises(UsageError, match="chunk of wkv is 0; expected at least 1"):
        wkv(*arrays, chunk=0)
    _, state = wkv(*arrays)
    with pytest.raises(UsageError, match=r"\(2, 3\); expected \(1, 3\)"):
        wkv(*(a[:1] for a in arrays[:2]), *arrays[2:], state=state)
    with pytest.raises(UsageError, match="state of the delta rule has the shape"):
        generalised_delta_rule(*matrices(), state=np.zeros((2, 2, 3, 3)))
