"""Flash attention for TPUs (Mosaic): forward, and the gradients of queries, of keys and values, and of the bias.

A program walks the visits of a `Schedule` along its last, sequential grid axis: what stays the same from one visit to
the next is not fetched again, and partial results wait in VMEM. Arrays are "batch heads time dim", lengths are whole
blocks, and rows' numbers (`NUMBERS`) lie along the lanes, as "batch heads 1 time": as a column each would take
128 times its size.

Sources: FlashAttention (arXiv 2205.14135), FlashAttention-2 (arXiv 2307.08691), section 3.1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from arch_jax.errors import UsageError
from arch_jax.ops.pallas import tile as tiles
from arch_jax.ops.pallas.schedule import EMPTY, FULL, PARTIAL, Rule, Schedule, schedule

LANES = 128
NUMBERS = ("largest", "logarithm", "delta")
TABLES = ("visit", "words", "slopes")
#: Numbers that the tables may hold: a chip keeps them in scalar memory, of which v5e's compiler gives 1 MiB.
SCALARS = 240_000


def _packed(plan: Schedule) -> np.ndarray:
    """Row, column and kind of each visit in one int32: room for 32,768 by 16,384 tiles."""
    return plan.row << 16 | plan.column << 2 | plan.kind


def _row(visit):
    return lax.shift_right_logical(visit, jnp.int32(16))


def _column(visit):
    return lax.shift_right_logical(visit, jnp.int32(2)) & 0x3FFF


def _kind(visit):
    return visit & 3


def _as_row(x):
    """(rows, 1) as (1, rows): Mosaic transposes whole registers, so the column is spread over all lanes before."""
    return jnp.broadcast_to(x, (x.shape[0], LANES)).T[:1]


def _as_column(x):
    """(1, rows) as (rows, 1)."""
    return jnp.broadcast_to(x, (LANES, x.shape[1])).T[:, :1]


class _Walk:
    """Base of the four kernels: blocks of every array, the tile of a visit, the call.

    Args:
      arrays: q, k, v; bias, slopes, query_ids and key_ids where given; do and `NUMBERS` for gradients.
      place: the grid's indices, of which the third is the visit's -> (batch, head).
      interpret: as `pallas_call` has it.
      turned: tiles are (columns, rows).
    """

    def __init__(self, rule: Rule, rows: int, columns: int, arrays: dict[str, Any], place, interpret, turned=False):
        self.rule, self.rows, self.columns, self.turned = rule, rows, columns, turned
        self.place, self.visit_axis, self.interpret = place, 2, interpret
        self.heads, self.kv_heads = arrays["q"].shape[1], arrays["k"].shape[1]
        self.dim, self.vdim = arrays["q"].shape[3], arrays["v"].shape[3]
        self.plan: Schedule = schedule(rule, rows, columns, by_column=turned)
        self.arrays = {name: x for name, x in arrays.items() if x is not None}
        for name, axis in (("query_ids", 1 if turned else 2), ("key_ids", 2 if turned else 1)):
            if name in self.arrays:
                self.arrays[name] = jnp.expand_dims(self.arrays[name], axis)
        words = self.plan.words
        if words is not None:
            self.arrays["words"] = jnp.asarray(words.reshape(-1))
        self.words = 0 if words is None else words.shape[1]
        self.arrays["visit"] = jnp.asarray(_packed(self.plan))
        scalars = len(self.plan.row) * (1 + self.words)
        if scalars > SCALARS and not interpret:
            raise UsageError(
                f"blocks of {rows} x {columns} make {len(self.plan.row)} tiles to visit, whose tables of {scalars} "
                f"numbers don't fit a TPU's scalar memory; expected at most {SCALARS}, as with blocks=Blocks("
                f"{2 * rows}, {2 * columns})"
            )

    def spec(self, name: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        """Which block of an array a visit reads or writes."""
        group = self.heads // self.kv_heads
        rows, columns = self.rows, self.columns
        of_query = lambda b, h, r, c: (b, h, r, 0)
        of_key = lambda b, h, r, c: (b, lax.div(h, jnp.int32(group)) if group > 1 else h, c, 0)
        of_row = lambda b, h, r, c: (b, h, 0, r)
        if name == "bias":
            full = [n > 1 for n in shape[:3]]
            block = (None, None, rows if full[2] else 1, columns)
            where = lambda *at: (*(index if whole else 0 for index, whole in zip(at, full)), at[3])
        elif name == "query_ids":
            block = (None, 1, rows) if self.turned else (None, rows, 1)
            where = lambda b, h, r, c: (b, 0, r) if self.turned else (b, r, 0)
        elif name == "key_ids":
            block = (None, columns, 1) if self.turned else (None, 1, columns)
            where = lambda b, h, r, c: (b, c, 0) if self.turned else (b, 0, c)
        else:
            block, where = {
                "q": ((None, None, rows, self.dim), of_query),
                "k": ((None, None, columns, self.dim), of_key),
                "v": ((None, None, columns, self.vdim), of_key),
                "do": ((None, None, rows, self.vdim), of_query),
                **dict.fromkeys(NUMBERS, ((None, None, 1, rows), of_row)),
            }[name]

        def index(*arguments):
            at, visits = arguments[: self.grid_axes], arguments[self.grid_axes]
            visit = visits[at[self.visit_axis]]
            return where(*self.place(*at), _row(visit), _column(visit))

        return pl.BlockSpec(block, index)

    def call(self, kernel, grid, outputs, scratch) -> Any:
        """Runs `kernel(walk, refs, outputs, scratch, at)` over the grid, of which the third axis is the visits.

        Args:
          outputs: (shape, dtype, block's spec or the name of an array that it is like), of each output.
        """
        self.grid_axes = len(grid)
        tables = [name for name in TABLES if name in self.arrays]
        blocks = [name for name in self.arrays if name not in TABLES]
        specs = [spec if isinstance(spec, pl.BlockSpec) else self.spec(spec, shape) for shape, _, spec in outputs]

        def body(*refs):
            names = [*tables, *blocks]
            given, rest = dict(zip(names, refs)), refs[len(names) :]
            at = tuple(pl.program_id(axis) for axis in range(len(grid)))
            kernel(self, given, rest[: len(outputs)], rest[len(outputs) :], at)

        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(tables),
                grid=grid,
                in_specs=[self.spec(name, self.arrays[name].shape) for name in blocks],
                out_specs=specs,
                scratch_shapes=scratch,
            ),
            out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
            # Partial results wait from visit to visit, and over what is innermost.
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", *["arbitrary"] * (len(grid) - 2))
            ),
            interpret=self.interpret,
        )(*(self.arrays[name] for name in (*tables, *blocks)))

    def each_kind(self, given, at, step) -> None:
        """Runs `step(tile, q, k, v)` in the form that the visit's tile needs: with the rule's mask or without."""
        kind = _kind(given["visit"][at[self.visit_axis]])
        partial, full = (functools.partial(self._run, given, at, step, masked) for masked in (True, False))
        # One branch of two, and not two of their own: who counts operations takes the costlier one.
        if {PARTIAL, FULL} <= self.plan.kinds:
            some = lambda: lax.cond(kind == FULL, full, partial)
        else:
            some = full if FULL in self.plan.kinds else partial
        if EMPTY in self.plan.kinds:
            pl.when(kind != EMPTY)(some)
        else:
            some()

    def _run(self, given, at, step, masked):
        n, head = at[self.visit_axis], self.place(*at)[1]
        read = lambda name: given[name][...] if name in given else None
        bias = read("bias")
        if bias is not None and self.turned:
            bias = bias.astype(jnp.float32)
            bias = _as_column(bias) if bias.shape[0] == 1 else bias.T
        one = tiles.Tile(
            self.rule,
            self.rows,
            self.columns,
            _row(given["visit"][n]),
            _column(given["visit"][n]),
            bias=bias,
            slope=given["slopes"][head] if "slopes" in given else None,
            query_ids=read("query_ids"),
            key_ids=read("key_ids"),
            words=[given["words"][n * self.words + w] for w in range(self.words)] or None,
            masked=masked,
            turned=self.turned,
        )
        step(one, read("q"), read("k"), read("v"))

    def ends(self, given, n):
        """True if a visit is the first, and the last, of its line."""
        line, last = _column if self.turned else _row, len(self.plan.row) - 1
        before, here, after = (line(given["visit"][at]) for at in (jnp.maximum(n - 1, 0), n, jnp.minimum(n + 1, last)))
        return (n == 0) | (here != before), (n == last) | (here != after)


def forward(arrays: dict[str, Any], rule: Rule, rows: int, columns: int, interpret: Any) -> tuple[Any, Any, Any]:
    """The attended values "batch heads time vdim"; of each row the largest score and the logarithm of the sum.

    The last two are float32 "batch heads time".
    """
    batch, heads, time, _ = arrays["q"].shape
    walk = _Walk(rule, rows, columns, arrays, lambda b, h, n: (b, h), interpret)

    def kernel(walk, given, outputs, scratch, at):
        n = at[2]
        first, last = walk.ends(given, n)
        out, *numbers = outputs

        @pl.when(first)
        def begin():
            for ref, value in zip(scratch, (tiles.LOWEST, 0.0, 0.0)):
                ref[...] = jnp.full_like(ref, value)

        def step(tile, q, k, v):
            s, _ = tiles.scores(tile, q, k)
            for ref, value in zip(scratch, tiles.softmax_step(tuple(ref[...] for ref in scratch), s, v)):
                ref[...] = value

        walk.each_kind(given, at, step)

        @pl.when(last)
        def end():
            values, *found = tiles.ending(tuple(ref[...] for ref in scratch))
            out[...] = values.astype(out.dtype)
            for ref, column in zip(numbers, found):
                ref[...] = _as_row(column)

    out, *numbers = walk.call(
        kernel,
        (batch, heads, len(walk.plan.row)),
        [
            ((batch, heads, time, walk.vdim), arrays["q"].dtype, "do"),
            ((batch, heads, 1, time), jnp.float32, "largest"),
            ((batch, heads, 1, time), jnp.float32, "logarithm"),
        ],
        [pltpu.VMEM((rows, 1), jnp.float32)] * 2 + [pltpu.VMEM((rows, walk.vdim), jnp.float32)],
    )
    return out, *(x[:, :, 0] for x in numbers)


def _with_rows(arrays):
    """The rows' numbers along the lanes."""
    return arrays | {name: arrays[name][:, :, None] for name in NUMBERS}


def query_gradient(arrays: dict[str, Any], rule: Rule, rows: int, columns: int, interpret: Any) -> Any:
    """The gradient of the queries, "batch heads time dim"."""
    batch, heads, time, dim = arrays["q"].shape
    walk = _Walk(rule, rows, columns, _with_rows(arrays), lambda b, h, n: (b, h), interpret)

    def kernel(walk, given, outputs, scratch, at):
        first, last = walk.ends(given, at[2])
        (gathered,) = scratch

        @pl.when(first)
        def begin():
            gathered[...] = jnp.zeros_like(gathered)

        def step(tile, q, k, v):
            numbers = (_as_column(given[name][...]) for name in NUMBERS)
            _, ds, _ = tiles.gradients(tile, q, k, v, given["do"][...], *numbers)
            gathered[...] += tiles.dot(ds.astype(k.dtype), k, 1, 0)

        walk.each_kind(given, at, step)

        @pl.when(last)
        def end():
            outputs[0][...] = (gathered[...] * rule.scale).astype(outputs[0].dtype)

    return walk.call(
        kernel,
        (batch, heads, len(walk.plan.row)),
        [((batch, heads, time, dim), arrays["q"].dtype, "q")],
        [pltpu.VMEM((rows, dim), jnp.float32)],
    )[0]


def key_value_gradients(arrays: dict[str, Any], rule: Rule, rows: int, columns: int, interpret: Any) -> tuple[Any, Any]:
    """The gradients of keys and values, "batch kv_heads source dim": summed over the heads that share them."""
    batch, kv_heads, source, dim = arrays["k"].shape
    group, vdim = arrays["q"].shape[1] // kv_heads, arrays["v"].shape[3]
    # The heads of a group are innermost: their keys and values are fetched once, and dk and dv wait for all of them.
    place = lambda b, kv_head, n, g: (b, kv_head * group + g)
    walk = _Walk(rule, rows, columns, _with_rows(arrays), place, interpret, turned=True)

    def kernel(walk, given, outputs, scratch, at):
        first, last = walk.ends(given, at[2])

        @pl.when(first & (at[3] == 0))
        def begin():
            for ref in scratch:
                ref[...] = jnp.zeros_like(ref)

        def step(tile, q, k, v):
            do = given["do"][...]
            p, ds, _ = tiles.gradients(tile, q, k, v, do, *(given[name][...] for name in NUMBERS))
            scratch[0][...] += tiles.dot(ds.astype(q.dtype), q, 1, 0)
            scratch[1][...] += tiles.dot(p.astype(do.dtype), do, 1, 0)

        walk.each_kind(given, at, step)

        @pl.when(last & (at[3] == group - 1))
        def end():
            outputs[0][...] = (scratch[0][...] * rule.scale).astype(outputs[0].dtype)
            outputs[1][...] = scratch[1][...].astype(outputs[1].dtype)

    return tuple(
        walk.call(
            kernel,
            (batch, kv_heads, len(walk.plan.row), group),
            [
                ((batch, kv_heads, source, dim), arrays["k"].dtype, "k"),
                ((batch, kv_heads, source, vdim), arrays["v"].dtype, "v"),
            ],
            [pltpu.VMEM((columns, dim), jnp.float32), pltpu.VMEM((columns, vdim), jnp.float32)],
        )
    )


def bias_gradient(arrays: dict[str, Any], rule: Rule, rows: int, columns: int, interpret: Any) -> Any:
    """The gradient of the bias in float32, over all keys: "batch|1 heads|1 time|1 source".

    What is broadcast over batch and heads is summed here, tile by tile, so that nothing larger than the bias is made.
    """
    (batch, heads, time, _), bias = arrays["q"].shape, arrays["bias"]
    source = arrays["k"].shape[2]
    own_batch, own_head, own_time = (n > 1 for n in bias.shape[:3])
    of_batch, of_heads = 1 if own_batch else batch, 1 if own_head else heads
    place = lambda b, h, n, e: (
        b if own_batch else lax.div(e, jnp.int32(of_heads)),
        h if own_head else lax.rem(e, jnp.int32(of_heads)),
    )
    walk = _Walk(rule, rows, columns, _with_rows(arrays), place, interpret)

    def kernel(walk, given, outputs, scratch, at):
        @pl.when(at[3] == 0)
        def begin():
            outputs[0][...] = jnp.zeros_like(outputs[0])

        def step(tile, q, k, v):
            numbers = (_as_column(given[name][...]) for name in NUMBERS)
            added = tiles.gradients(tile, q, k, v, given["do"][...], *numbers)[2]
            outputs[0][...] += added if own_time else jnp.sum(added, axis=0, keepdims=True)

        walk.each_kind(given, at, step)

    parts = time // rows
    lead = bias.shape[:2]
    if own_time:
        shape = (*lead, time, source)
        where = lambda b, h, n, e, visits, *_: (b, h, _row(visits[n]), _column(visits[n]))
        spec = pl.BlockSpec((None, None, rows, columns), where)
    else:  # a row of sums for each row of tiles
        shape = (*lead, parts, 1, source)
        where = lambda b, h, n, e, visits, *_: (b, h, _row(visits[n]), 0, _column(visits[n]))
        spec = pl.BlockSpec((None, None, None, 1, columns), where)
    found = walk.call(
        kernel,
        (*lead, len(walk.plan.row), of_batch * of_heads),
        [(shape, jnp.float32, spec)],
        [],
    )[0]
    # Tiles that no visit wrote hold anything at all.
    written = np.repeat(walk.plan.tiles, columns, axis=1)
    if own_time:
        return jnp.where(np.repeat(written, rows, axis=0), found, 0.0)
    return jnp.sum(jnp.where(written[:, None], found, 0.0), axis=2)
