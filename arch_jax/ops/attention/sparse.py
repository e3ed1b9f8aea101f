"""Attention under a sparse pattern for XLA: tiles without a visible pair are never computed.

Queries are cut into blocks of rows. Each block gathers the tiles of keys and values that its row of the pattern keeps,
and attends to nothing else. Blocks with about as many tiles form one loop, so that programs do not grow with the
length, and the few long rows (a Longformer's global tokens see everything) don't make the short ones long.

The gradient is a loop of its own that adds to the tiles of dk and dv in place: automatic differentiation of
a gather in a loop makes an array of k's whole size for every block, which would take time of the length squared.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from arch_jax.ops.attention.blocked import _attend, _attend_with_logsumexp, _grouped, _term
from arch_jax.ops.platform import platform
from arch_jax.ops.precision import at_least_float32, like

GROUPS = 5  # at most so many loops
TILE = {"cpu": 64}  # positions in a tile, of queries and of keys
TILE_ELSEWHERE = 128


class Loop(NamedTuple):
    """Blocks of rows that keep about as many tiles, as static arrays."""

    rows: np.ndarray  # "rows": the blocks of queries
    kept: np.ndarray  # "rows most": their tiles of keys, 0 beyond their number
    valid: np.ndarray  # "rows most": whether there is one


class TilePlan(NamedTuple):
    """Everything static about a call; hashable."""

    pattern: Any
    time: int
    source: int
    tile: int
    causal: bool
    window: int | None
    softcap: float | None
    logsumexp: bool

    def loops(self) -> list[Loop]:
        """The blocks of rows, in loops; every block stands in one."""
        return _loops(self.pattern, self.time, self.source, self.tile, self.causal, self.window)


def tile_size(granularity: int, usual: int) -> int:
    """The tile nearest to the usual one whose squares don't cut those of the pattern, where there is a sensible one."""
    if granularity == 1:
        return usual
    if granularity < usual // 2:
        return usual // granularity * granularity
    divisors = [n for n in range(1, granularity + 1) if granularity % n == 0 and n <= 2 * usual]
    return divisors[-1] if divisors[-1] >= usual // 4 else granularity


@functools.lru_cache(maxsize=64)
def _loops(pattern, time, source, tile, causal, window):
    kept = pattern.tiles(time, source, tile, tile)
    first = np.arange(0, max(time, source), tile)
    i, j = first[: kept.shape[0], None], first[None, : kept.shape[1]]
    if causal:
        kept = kept & (j <= i)
    if window is not None:
        kept = kept & (abs(i - j) < window + tile - 1)
    counts = np.maximum(kept.sum(axis=1), 1)
    loops = []
    for most in _most_of_each_group(counts):
        rows = np.flatnonzero(counts <= most)
        counts[rows] = np.iinfo(counts.dtype).max  # taken
        tiles = np.zeros((len(rows), most), np.int32)
        valid = np.zeros((len(rows), most), bool)
        for n, row in enumerate(rows):
            found = np.flatnonzero(kept[row])
            tiles[n, : len(found)], valid[n, : len(found)] = found, True
        loops.append(Loop(rows.astype(np.int32), tiles, valid))
    return loops


def _most_of_each_group(counts: np.ndarray) -> list[int]:
    """Cuts the sorted counts into at most GROUPS groups, each as long as its longest, with the least sum of lengths."""
    values, number = np.unique(counts, return_counts=True)
    before = np.concatenate([[0], np.cumsum(number)])
    n = len(values)
    cost = np.concatenate([[0.0], np.full(n, np.inf)])
    cuts = []
    for _ in range(min(GROUPS, n)):
        # Of the group that ends with value e and begins after the first b: its members, all as long as the last.
        trial = cost[:n, None] + np.where(
            np.arange(n)[:, None] < np.arange(1, n + 1), (before[1:] - before[:n, None]) * values, np.inf
        )
        cuts.append(np.argmin(trial, axis=0))
        cost = np.concatenate([[0.0], np.min(trial, axis=0)])
    ends, end = [], n
    for cut in reversed(cuts):
        if end == 0:
            break
        ends.append(int(values[end - 1]))
        end = int(cut[end - 1])
    return ends[::-1]


def sparse_attention(
    q, k, v, *, pattern, mask, bias, alibi, causal, window, query_ids, key_ids, softcap, scale, logsumexp=False
):
    """`attention` under a pattern, on arguments already checked. Reverse-mode derivatives only."""
    batch, time, heads, _ = q.shape
    source, kv_heads, vdim = v.shape[1:]
    group, out_dtype = heads // kv_heads, q.dtype
    tile = tile_size(pattern.granularity, TILE.get(platform(), TILE_ELSEWHERE))
    plan = TilePlan(pattern, time, source, tile, causal, window, softcap, logsumexp)
    if platform() == "cpu":
        q, k, v = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (q, k, v))
    # Tiles first: a loop reads and writes whole ones.
    q = _tiled(q * jnp.asarray(scale, q.dtype), 1, tile)  # "rows batch tile heads dim"
    q = q.reshape(*q.shape[:3], kv_heads, group, -1).transpose(0, 1, 3, 4, 2, 5)
    q = q.reshape(*q.shape[:3], group * tile, -1)  # "rows batch kv_heads (group tile) dim"
    k, v = (_tiled(x, 1, tile).transpose(0, 1, 3, 2, 4) for x in (k, v))  # "tiles batch kv_heads tile dim"
    mask, bias = (None if x is None else _squares(x, tile) for x in (mask, bias))
    ids = (None, None) if query_ids is None else (_tiled(query_ids, 1, tile), _tiled(key_ids, 1, tile))
    out, total = _sparse(plan, q, k, v, bias, (mask, alibi, *ids))
    out = out.reshape(-1, batch, kv_heads, group, tile, vdim).transpose(1, 0, 4, 2, 3, 5)
    out = out.reshape(batch, -1, heads, vdim)[:, :time].astype(out_dtype)
    if not logsumexp:
        return out
    total = total.reshape(-1, batch, kv_heads, group, tile).transpose(1, 2, 3, 0, 4)
    return out, total.reshape(batch, heads, -1)[..., :time]


def _tiled(x, axis, tile):
    """Cuts an axis into tiles (the last one filled with 0) and brings their number to the front."""
    missing = -x.shape[axis] % tile
    x = jnp.pad(x, [(0, missing if n == axis else 0) for n in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, tile, *x.shape[axis + 1 :]), axis, 0)


def _squares(x, tile):
    """Cuts "batch heads time source" into "rows tiles batch heads tile tile"; an axis of 1 stays 1 tile of 1."""
    x = _tiled(x, 3, tile if x.shape[3] > 1 else 1)
    return _tiled(x, 3, tile if x.shape[3] > 1 else 1)


def _joined(x):
    """Brings gathered tiles "kept ... tile last" to "... (kept tile) last"."""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _of_row(squares, row):
    """The index of a row's squares among those that `_squares` cut: 0 where all rows share them."""
    return row if squares.shape[0] > 1 else 0


def _gathered(part, kept):
    """The squares of one row that are kept, as "batch heads tile|1 (kept tile)|1"."""
    if part.shape[0] == 1:
        return part[0]
    return _joined(part[kept].swapaxes(-1, -2)).swapaxes(-1, -2)


def _attend_row(plan, row, kept, valid, q, k, v, bias, extras):
    """One block of queries over the tiles of k and v "kept batch kv_heads tile dim" that it keeps.

    `bias` holds the row's squares, "tiles batch heads tile tile", and the mask among `extras` those of all rows.
    """
    mask, alibi, query_ids, key_ids = extras
    tile, kv_heads = plan.tile, k.shape[2]
    i = row * tile + jnp.arange(tile)[:, None]
    j = (kept[:, None] * tile + jnp.arange(tile)).reshape(1, -1)
    visible = jnp.repeat(valid, tile)[None] & (j < plan.source)
    granularity = plan.pattern.granularity
    if granularity == 1:
        visible &= plan.pattern.visible(i, j)
    elif granularity % tile:
        table = plan.pattern.tiles(plan.time, plan.source, granularity, granularity)
        visible &= jnp.asarray(table)[i // granularity, j // granularity]
    if plan.causal:
        visible &= j <= i
    if plan.window is not None:
        visible &= abs(i - j) < plan.window
    visible = jnp.broadcast_to(visible, (1, 1, tile, j.shape[1]))
    added, seen = _term(
        visible,
        lambda: abs(i - j),
        mask=None if mask is None else _gathered(mask[_of_row(mask, row)], kept),
        bias=None if bias is None else _gathered(bias, kept),
        query_ids=None if query_ids is None else query_ids[row],
        key_ids=None if key_ids is None else jnp.moveaxis(key_ids[kept], 0, 1).reshape(key_ids.shape[1], -1),
        alibi=alibi,
        precision=jnp.promote_types(q.dtype, jnp.float32),
    )
    seen = jnp.any(visible, axis=-1, keepdims=True) if seen is None else seen
    group = q.shape[2] // tile
    added, seen = (_grouped(x, kv_heads, group, tile) for x in (added, seen))
    arguments = (plan.softcap, None, q, _joined(k), _joined(v), added)
    if not plan.logsumexp:
        return _attend(*arguments) * seen, None
    out, total = _attend_with_logsumexp(*arguments)
    return out * seen, jnp.where(seen, total, -jnp.inf)


def _in_order(loops, parts):
    """Puts what the loops gave for their rows, one after another, into the order of the rows."""
    order = np.argsort(np.concatenate([loop.rows for loop in loops]))
    return jax.tree.map(lambda *of_loops: jnp.concatenate(of_loops)[order], *parts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sparse(plan, q, k, v, bias, extras):
    """Blocks of queries "rows batch kv_heads (group tile) dim" -> the same of values, and of logarithms or None."""

    def one(at):
        row, kept, valid = at
        of_row = None if bias is None else bias[_of_row(bias, row)]
        return _attend_row(plan, row, kept, valid, q[row], k[kept], v[kept], of_row, extras)

    loops = plan.loops()
    return _in_order(loops, [lax.map(one, tuple(map(jnp.asarray, loop))) for loop in loops])


def _sparse_forward(plan, q, k, v, bias, extras):
    return _sparse(plan, q, k, v, bias, extras), (q, k, v, bias, extras)


def _sparse_backward(plan, saved, g):
    q, k, v, bias, extras = saved

    def one(carry, at):
        row, kept, valid = at
        dk, dv, d_bias = carry

        def form(q, k, v, bias):
            return _attend_row(plan, row, kept, valid, q, k, v, bias, extras)

        of_row = None if bias is None else bias[_of_row(bias, row)]
        out, pull = jax.vjp(form, q[row], k[kept], v[kept], of_row)
        g_row = jax.tree.map(lambda x, like: x[row].astype(like.dtype), g, out)
        dq, dk_kept, dv_kept, d_bias_row = pull(g_row)
        if bias is not None:
            d_bias = d_bias.at[_of_row(bias, row)].add(d_bias_row.astype(d_bias.dtype))
        return (dk.at[kept].add(dk_kept.astype(dk.dtype)), dv.at[kept].add(dv_kept.astype(dv.dtype)), d_bias), dq

    loops = plan.loops()
    carry = jax.tree.map(jnp.zeros_like, at_least_float32((k, v, bias)))  # a tile has a gradient from many blocks
    dqs = []
    for loop in loops:
        carry, dq = lax.scan(one, carry, tuple(map(jnp.asarray, loop)))
        dqs.append((dq,))
    (dq,) = _in_order(loops, dqs)
    return dq, *like(carry, (k, v, bias)), None


_sparse.defvjp(_sparse_forward, _sparse_backward)
