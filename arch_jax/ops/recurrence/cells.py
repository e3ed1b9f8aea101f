"""Recurrent cells, one step each, and the loop over time that runs them with a gradient of its own."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from arch_jax.ops.precision import at_least_float32, like


def lstm_update(peepholes, carry, gates, _):
    """A step for `recurrent_loop`: (h, c) of an LSTM from the sums of i, f, g and o. `peepholes` may be None."""
    _, c = carry
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    if peepholes is not None:
        i, f = i + peepholes[0] * c, f + peepholes[1] * c
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    if peepholes is not None:
        o = o + peepholes[2] * c
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def reset_before(u_n, carry, rz, heard_n):
    """A step for `recurrent_loop` with (r * h) U_n, from the sums of r and z and x W_n + b_n; "batch units" each."""
    (h,) = carry
    r, z = jnp.split(jax.nn.sigmoid(rz), 2, axis=-1)
    n = jnp.tanh(heard_n + ((r * h).astype(u_n.dtype) @ u_n).astype(h.dtype))
    return ((1 - z) * n + z * h,)


def reset_after(_, carry, gates, heard_n):
    """A step for `recurrent_loop` with r * (h U_n), from the sums of r, z and what r multiplies, and x W_n + b_n."""
    (h,) = carry
    r, z, u_n = jnp.split(gates, 3, axis=-1)
    n = jnp.tanh(heard_n + jax.nn.sigmoid(r) * u_n)
    z = jax.nn.sigmoid(z)
    return ((1 - z) * n + z * h,)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recurrent_loop(step, u, parameters, carry, added, rest, masks):
    """A loop over time with one product a step, h_{t-1} U, whose gradient in U is one product after the loop.

    Automatic differentiation adds up U's gradient step by step, which reads and writes a matrix of U's size at each.
    A step of `_BY_HAND` without parameters is pulled back by its own equations, which keep less and compute less.

    Args:
      step: (parameters, carry, added_t + h U, rest_t) -> carry; a function of the module, not a closure.
      u: U, "hidden gates".
      parameters: a tree of arrays that every step shares.
      carry: a tuple of arrays "batch hidden", h first.
      added: "time batch gates".
      rest: a tree of arrays "time batch ...".
      masks: (starts, real) "time batch 1": where the carry becomes 0 before the step, and where it changes at all;
        None for nowhere and everywhere.

    Returns:
      (the carry after the last step, h of every step: "time batch hidden", 0 where nothing is real). Reverse-mode
      derivatives only.
    """
    carry, (out, _) = _scan(step, u, parameters, carry, added, rest, masks)
    return carry, out


def _scan(step, u, parameters, carry, added, rest, masks):
    wide = at_least_float32(parameters)  # what every step shares gets a gradient from each

    def body(carry, now):
        added, rest, mask = now
        if mask is not None:
            carry = tuple(jnp.where(mask[0], 0, part) for part in carry)
        h = carry[0]
        new = step(like(wide, parameters), carry, added + (h.astype(u.dtype) @ u).astype(added.dtype), rest)
        if mask is None:
            return new, (new[0], None)
        new = tuple(jnp.where(mask[1], now, old) for now, old in zip(new, carry))
        return new, (jnp.where(mask[1], new[0], 0), h)

    return lax.scan(body, carry, (added, rest, masks))


def _loop_forward(step, u, parameters, carry, added, rest, masks):
    if step in _BY_HAND and parameters is None and rest is None:
        after, kept, seen = _scan_keeping(_BY_HAND[step][0], u, carry, added, masks)
        return after, (None, kept, masks, seen, u)

    # U is a constant here: what arrives at `added` is all that its gradient needs beside h.
    def loop(*arguments):
        after, (out, seen) = _scan(step, u, *arguments, masks)
        return (after, out), seen

    after, pull, seen = jax.vjp(loop, parameters, carry, added, rest, has_aux=True)
    if seen is None:
        seen = jnp.concatenate([carry[0][None], after[1]])[:-1]
    return after, (pull, None, None, seen, u)


def _loop_backward(step, saved, cotangents):
    pull, kept, masks, seen, u = saved
    if pull is None:
        parameters, rest = None, None
        carry, added = _scan_back(_BY_HAND[step][1], u, kept, masks, *cotangents)
    else:
        parameters, carry, added, rest = pull(cotangents)
    d_u = jnp.einsum("tbh,tbg->hg", seen.astype(u.dtype), added.astype(u.dtype), preferred_element_type=added.dtype)
    return d_u.astype(u.dtype), parameters, carry, added, rest, None


recurrent_loop.defvjp(_loop_forward, _loop_backward)


def _scan_keeping(forward, u, carry, added, masks):
    """`_scan`, with what each step keeps for its own gradient: ((carry, h), kept, the h that each step saw)."""

    def body(carry, now):
        added, mask = now
        if mask is not None:
            carry = tuple(jnp.where(mask[0], 0, part) for part in carry)
        h = carry[0]
        new, kept = forward(carry, added + (h.astype(u.dtype) @ u).astype(added.dtype))
        if mask is None:
            return new, (new[0], kept, None)
        new = tuple(jnp.where(mask[1], now, old) for now, old in zip(new, carry))
        return new, (jnp.where(mask[1], new[0], 0), kept, h)

    after, (out, kept, seen) = lax.scan(body, carry, (added, masks))
    if seen is None:
        seen = jnp.concatenate([carry[0][None], out])[:-1]
    return (after, out), kept, seen


def _scan_back(backward, u, kept, masks, carry, out):
    """The gradients of `_scan_keeping`: (in the carry before the first step, in `added`)."""

    def body(carry, now):
        out, kept, mask = now
        old = None
        if mask is not None:  # where nothing is real, the carry passed by, and 0 was the output
            old = tuple(jnp.where(mask[1], 0, part) for part in carry)
            carry = tuple(jnp.where(mask[1], part, 0) for part in carry)
            out = jnp.where(mask[1], out, 0)
        h, *others = carry
        others, gates = backward((h + out, *others), kept)
        h = lax.dot_general(gates.astype(u.dtype), u, (((1,), (1,)), ((), ()))).astype(gates.dtype)
        before = (h, *others)
        if mask is not None:
            before = tuple(jnp.where(mask[0], 0, part + past) for part, past in zip(before, old))
        return before, gates

    return lax.scan(body, carry, (out, kept, masks), reverse=True)


def _lstm_forward(carry, gates):
    """`lstm_update` without peepholes, and what its gradient needs: gates, the cells before, tanh of those after.

    The gates lie side by side as they came, so that a step keeps three arrays and not seven.
    """
    _, before = carry
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * before + i * g
    squashed = jnp.tanh(c)
    return (o * squashed, c), (jnp.concatenate([i, f, g, o], axis=-1), before, squashed)


def _lstm_backward(carry, kept):
    """(gradients of what a step was given but h, that of the sums of its gates), given those of (h, c) after it."""
    h, c = carry
    gates, before, squashed = kept
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = c + h * o * (1 - squashed * squashed)
    sums = (c * g * i * (1 - i), c * before * f * (1 - f), c * i * (1 - g * g), h * squashed * o * (1 - o))
    return (c * f,), jnp.concatenate(sums, axis=-1)


#: Steps with equations of their own for the gradient: (forward, backward). Compared with automatic differentiation.
_BY_HAND = {lstm_update: (_lstm_forward, _lstm_backward)}
