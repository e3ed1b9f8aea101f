"""The fast form of attention for XLA: query rows in blocks that read only the keys they may see.

Nothing of size time x source outlives a block, forward or backward: only q, k and v are kept for the gradient, and each
block's probabilities are recomputed from them.

Measurements (2 shared CPU cores with AVX-512, jax 0.10.2, float32; causal, forward + backward under jit, 8 x 256
tokens, 8 heads of 32; times as multiples of PyTorch 2.13's `scaled_dot_product_attention` in the same run):

    dense, `where` and softmax                              3.1 - 3.3
    blocks of 64 rows, automatic differentiation            1.9
    dq, dk and dv each computed from q, k, v in one fusion  1.6 - 1.9
    blocks of 64, probabilities kept for backward           0.8 - 0.9
    blocks of 64, probabilities recomputed                  0.8          (this file)
    blocks of 32 / 128 rows                                 0.9 - 1.0 / 1.1 - 1.25

XLA's CPU compiler fuses dot, addition, maximum, exponential, sum and the second dot into one loop that stays in cache,
provided that (1) the mask is a term that is added (a `where` breaks the fusion), (2) the division by the softmax's sum
comes after the product with v, and (3) nothing else, such as the logsumexp, is asked of the same intermediates.
Together that made the forward six times faster than the same code with the logsumexp returned.

In the backward the products stand alone, and it matters which way they are written: p^T g, a sum over the rows of p,
has XLA transpose p and runs at 30 GFLOP/s of a core, and (g^T p)^T at 100, since g is the smaller one. That, and more
rows for longer sequences (2 heads of 64, causal, forward + backward on one shared core; multiples of PyTorch's time):

    tokens   sums over rows of p, 64 rows   the transposed products, 64 rows   128 rows
       256                    1.0 - 1.1                               0.91       0.98
     1,024                    1.4 - 1.6                               1.26       1.08
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from arch_jax.ops.platform import platform
from arch_jax.ops.precision import at_least_float32

# The score of an invisible pair: far below any score, and yet finite, so that a row without any visible key
# gives numbers (which are then multiplied by 0) and not NaN. Less in magnitude than float32's largest by 1e8, so sums
# of two such terms do not overflow.
INVISIBLE = -1e30
ROWS = 64  # query rows in a block on CPU, twice as many from 8 blocks on; see the tables above
UNROLLED = 8  # at most so many blocks are written out one after another; more become loops


def rows_and_pieces(time: int, block: int, window: int | None) -> list[tuple[int, int, int]]:
    """Cuts `time` query rows into pieces `(start, rows of a block, number of blocks)`; several blocks make a loop."""
    whole, rest = divmod(time, block)
    if whole + bool(rest) <= UNROLLED:
        pieces = [(block * n, block, 1) for n in range(whole)]
    elif window is not None and 2 * window < time:
        pieces = [(0, block, whole)]  # a loop reads equally many keys for every block, here no more than the window's
    else:
        # The keys that a loop's blocks read are those of its last block: several loops, so that few are read in vain.
        each = -(-whole // UNROLLED)
        pieces = [(block * n, block, min(each, whole - n)) for n in range(0, whole, each)]
    return pieces + ([(block * whole, rest, 1)] if rest else [])


def blocked_attention(
    q, k, v, *, mask, bias, alibi, causal, window, query_ids, key_ids, softcap, scale, logsumexp=False, block=None
):
    """`attention` on arguments already checked: q "batch time heads dim", out "batch time heads vdim" in q's dtype.

    With `logsumexp`, also that, "batch heads time". Reverse-mode derivatives only (the blocks carry a hand-written
    gradient).
    """
    time = q.shape[1]
    if block is None:
        block = (ROWS if time < 8 * ROWS else 2 * ROWS) if platform() == "cpu" else 512
    static = {"causal": causal, "window": window, "softcap": softcap, "scale": scale}
    form = functools.partial(_blocked, **static, logsumexp=logsumexp, block=block)
    # checkpoint: the gradient starts from q, k, v and the additive terms again and keeps nothing else. Saved slices of
    # k and v, one for each block, would be several times their size, and stacked once more by a scan over layers.
    return jax.checkpoint(form)(q, k, v, mask, bias, alibi, query_ids, key_ids)


def _blocked(q, k, v, mask, bias, alibi, query_ids, key_ids, *, causal, window, softcap, scale, logsumexp, block):
    batch, time, heads, dim = q.shape
    source, kv_heads, vdim = v.shape[1:]
    group = heads // kv_heads
    out_dtype = q.dtype
    precision = jnp.promote_types(q.dtype, jnp.float32)
    # Of k, v and the bias every block of rows has a gradient, and their sum is made in this precision.
    k, v, bias = at_least_float32((k, v, bias))
    if platform() == "cpu":
        q = q.astype(precision)  # CPUs multiply float32 faster than bfloat16
    # The query heads that share a kv head become rows of one matrix: larger products, and k and v are not repeated.
    q_bkgtd = (q * jnp.asarray(scale, q.dtype)).reshape(batch, time, kv_heads, group, dim).transpose(0, 2, 3, 1, 4)
    k_bksd, v_bksd = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    def rows(start, n, key_start, keys):
        """Rows [start, start + n) over keys [key_start, key_start + keys); the starts may be traced."""
        part = functools.partial(_part, start=start, n=n)
        key_part = functools.partial(_part, start=key_start, n=keys)
        sight = Sight(start, n, key_start, keys, causal, window)
        added, seen = _added(
            sight,
            mask=None if mask is None else key_part(part(mask, axis=2), axis=3),
            bias=None if bias is None else key_part(part(bias, axis=2), axis=3),
            query_ids=None if query_ids is None else part(query_ids, axis=1),
            key_ids=None if key_ids is None else key_part(key_ids, axis=1),
            alibi=alibi,
            precision=precision,
        )
        # Of a static place the term is a constant of the program, made where it is used, and not a saved array.
        static = isinstance(start, int) and added is None
        out = (_attend_with_logsumexp if logsumexp else _attend)(
            softcap,
            (sight, group) if static else None,
            part(q_bkgtd, axis=3).reshape(batch, kv_heads, group * n, dim),
            key_part(k_bksd, axis=2).astype(q.dtype),
            key_part(v_bksd, axis=2).astype(q.dtype),
            None if static else _grouped(sight.term(precision) if added is None else added, kv_heads, group, n),
        )
        out, total = out if logsumexp else (out, None)
        if seen is not None:
            seen = _grouped(seen, kv_heads, group, n)
            out = out * seen.astype(out.dtype)
            total = None if total is None else jnp.where(seen, total, -jnp.inf)
        out = out.reshape(batch, kv_heads, group, n, vdim).astype(out_dtype)
        return out, None if total is None else total.reshape(batch, kv_heads, group, n, 1)

    outs = []
    for start, n, blocks in rows_and_pieces(time, block, window):
        end = start + n * blocks
        key_start = 0 if window is None else max(0, start - window + 1)
        key_end = end if causal else source if window is None else min(source, end - 1 + window)
        if blocks == 1:
            outs.append(rows(start, n, key_start, key_end - key_start))
            continue
        keys, reach = key_end - key_start, 0
        if window is not None:
            reach = n + (window - 1) * (1 if causal else 2)  # what one block can see at most
        if 0 < reach < keys:
            one = lambda i, n=n, reach=reach: rows(i, n, jnp.clip(i - window + 1, 0, source - reach), reach)
        else:
            one = lambda i, n=n, key_start=key_start, keys=keys: rows(i, n, key_start, keys)
        # checkpoint again: else every block's added term would be kept for the loop's gradient.
        looped = lax.map(jax.checkpoint(one), start + n * jnp.arange(blocks))
        outs.append(jax.tree.map(lambda x: jnp.moveaxis(x, 0, 3).reshape(*x.shape[1:4], -1, x.shape[-1]), looped))
    out, total = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=3), *outs)
    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, time, heads, vdim)
    return (out, total.reshape(batch, heads, time)) if logsumexp else out


def _part(x, *, start, n, axis):
    """`n` entries of an axis from `start` on, static or traced; an axis of 1 broadcasts and stays as it is."""
    if x.shape[axis] == 1:
        return x
    if isinstance(start, int):
        return lax.slice_in_dim(x, start, start + n, axis=axis)
    return lax.dynamic_slice_in_dim(x, start, n, axis=axis)


class Sight(NamedTuple):
    """The pairs that `causal` and `window` allow in a block; the starts may be traced."""

    start: int
    rows: int
    key_start: int
    keys: int
    causal: bool
    window: int | None

    def visible(self):
        """bool "rows keys": numpy's where the block's place is static; True for everything."""
        i, j = np.arange(self.rows)[:, None] + self.start, np.arange(self.keys) + self.key_start
        visible = True
        if self.causal:
            visible = j <= i
        if self.window is not None:
            visible = visible & (i - self.window < j)
            if not self.causal:
                visible = visible & (j < i + self.window)
        return True if isinstance(visible, np.ndarray) and visible.all() else visible

    def distance(self):
        """|i - j| "rows keys"."""
        i, j = np.arange(self.rows)[:, None] + self.start, np.arange(self.keys) + self.key_start
        return abs(i - j)

    def term(self, precision):
        """The additive term of the scores, "1 1 rows keys", or None for nothing."""
        visible = self.visible()
        if visible is True:
            return None
        where = np.where if isinstance(visible, np.ndarray) else jnp.where
        return where(visible, 0.0, INVISIBLE).astype(precision)[None, None]


def _added(sight, *, mask, bias, query_ids, key_ids, alibi, precision):
    """Additive terms of a block's scores, and the rows that see anything ("batch|1 heads|1 time|1 1").

    The first is None if no term is given: then the term is that of visibility alone. The second is None if every row
    sees itself.
    """
    if mask is None and bias is None and query_ids is None and alibi is None:
        return None, None
    return _term(
        sight.visible(),
        lambda: sight.distance(),
        mask=mask,
        bias=bias,
        query_ids=query_ids,
        key_ids=key_ids,
        alibi=alibi,
        precision=precision,
    )


def _term(visible, distance, *, mask, bias, query_ids, key_ids, alibi, precision):
    """`_added` from the pairs that the place lets see each other (True: all) and a function that gives |i - j|."""
    everywhere = mask is None and bias is None and query_ids is None
    if mask is not None:
        visible = mask & visible
    if query_ids is not None:
        query_ids, key_ids = query_ids[:, None, :, None], key_ids[:, None, None, :]
        visible = visible & (query_ids == key_ids) & (query_ids != 0)
    if bias is not None:
        visible = visible & (bias > -jnp.inf)
    term = 0.0 if bias is None else jnp.maximum(bias.astype(precision), INVISIBLE)
    if alibi is not None:
        term = term - alibi.astype(precision)[None, :, None, None] * distance()
    if visible is True:
        return term, None
    seen = None if everywhere else jnp.any(visible, axis=-1, keepdims=True)
    return jnp.where(visible, term, jnp.asarray(INVISIBLE, precision)), seen


def _grouped(x, kv_heads, group, n):
    """Brings "batch|1 heads|1 time|1 any" to "batch|1 kv_heads|1 (group time) any", the rows of the merged product."""
    if x is None or group == 1 or x.shape[1] == x.shape[2] == 1:
        return x
    batch, heads, _, last = x.shape
    x = x.reshape(batch, kv_heads, group, *x.shape[2:]) if heads > 1 else x[:, :, None]
    x = jnp.broadcast_to(x, (*x.shape[:2], group, n, last))
    return x.reshape(batch, x.shape[1], group * n, last)


def _dot(a, b, a_axis, b_axis):
    """A product over one axis of each, for every batch and head, summed in at least float32."""
    precision = jnp.promote_types(a.dtype, jnp.float32)
    dimensions = (((a_axis,), (b_axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(a, b, dimensions, preferred_element_type=precision)


def _scores(softcap, q, k):
    s = _dot(q, k, 3, 3)
    return s if softcap is None else softcap * jnp.tanh(s / softcap)


def _weights(softcap, place, q, k, added):
    """exp(scores - their maximum) "... rows source", its sum over the source, and the maximum."""
    s = _scores(softcap, q, k)
    if place is not None:
        sight, group = place
        added = _grouped(sight.term(s.dtype), 1, group, sight.rows)
    if added is not None:
        s = s + added
    largest = jnp.max(s, axis=-1, keepdims=True)
    weights = jnp.exp(s - largest)
    return weights, jnp.sum(weights, axis=-1, keepdims=True), largest


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(softcap, place, q, k, v, added):
    """softmax(scores + added) v of one block: q "batch kv_heads rows dim", k and v "batch kv_heads source ..."."""
    weights, total, _ = _weights(softcap, place, q, k, added)
    return _dot(weights.astype(v.dtype), v, 3, 2) / total


def _attend_forward(softcap, place, q, k, v, added):
    return _attend(softcap, place, q, k, v, added), (q, k, v, added)


def _attend_backward(softcap, place, saved, g, g_total=None):
    q, k, v, added = saved
    # The barriers stand where a result has several readers: without them XLA computes it anew in each reader's fusion.
    weights, total, _ = _weights(softcap, place, q, k, added)
    p = lax.optimization_barrier(weights / total)
    g_low = g.astype(v.dtype)
    dp = _dot(g_low, v, 3, 3)
    inner = jnp.sum(p * dp, axis=-1, keepdims=True)
    ds = lax.optimization_barrier(p * (dp - (inner if g_total is None else inner - g_total)))
    d_added = None if added is None else _summed_to(ds, added)
    if softcap is not None:  # the derivative of c tanh(s/c) is 1 - tanh(s/c)^2
        ds = lax.optimization_barrier(ds * (1 - jnp.square(_scores(softcap, q, k) / softcap)))
    ds_low = ds.astype(q.dtype)
    dq = _dot(ds_low, k, 3, 2)
    dk = _dot(q, ds_low, 2, 2).swapaxes(2, 3)
    dv = _dot(g_low, p.astype(v.dtype), 2, 2).swapaxes(2, 3)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), d_added


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend_with_logsumexp(softcap, place, q, k, v, added):
    """`_attend`, and the logarithm of the softmax's sum "batch kv_heads rows 1". Slower: see the top of this file."""
    weights, total, largest = _weights(softcap, place, q, k, added)
    return _dot(weights.astype(v.dtype), v, 3, 2) / total, largest + jnp.log(total)


def _attend_with_logsumexp_forward(softcap, place, q, k, v, added):
    return _attend_with_logsumexp(softcap, place, q, k, v, added), (q, k, v, added)


def _attend_with_logsumexp_backward(softcap, place, saved, g):
    return _attend_backward(softcap, place, saved, *g)


def _summed_to(x, like):
    """The gradient of a broadcast: sums the axes along which `like` has 1."""
    axes = tuple(i for i in range(x.ndim) if like.shape[i] == 1 and x.shape[i] != 1)
    return jnp.sum(x, axis=axes, keepdims=True).astype(like.dtype) if axes else x.astype(like.dtype)


_attend.defvjp(_attend_forward, _attend_backward)
_attend_with_logsumexp.defvjp(_attend_with_logsumexp_forward, _attend_with_logsumexp_backward)
