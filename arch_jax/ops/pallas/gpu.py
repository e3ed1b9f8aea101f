"""Flash attention for GPUs (Triton): forward, and the gradients of queries, of keys and values, and of the bias.

A program owns a row of tiles (a column, for keys and values) and loops over those that its `Schedule` keeps: first the
ones with nothing hidden, then the ones that need a mask. Arrays keep the model's layout, "batch time heads dim", since
a GPU reads any strides equally well; head sizes are powers of two, and lengths whole blocks.

This has not run on a GPU yet: it is interpreted on a CPU against the oracle, and lowered to Triton; its block sizes
are not tuned.

Sources: FlashAttention (arXiv 2205.14135), FlashAttention-2 (arXiv 2307.08691), section 3.1.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from arch_jax.ops.pallas import tile as tiles
from arch_jax.ops.pallas.blocks import Blocks
from arch_jax.ops.pallas.schedule import FULL, PARTIAL, Rule, Schedule, schedule

NUMBERS = ("largest", "logarithm", "delta")


class _Program:
    """Base of the four kernels: whole arrays in reach of every program, and the tile at a visit."""

    def __init__(self, rule: Rule, rows: int, columns: int, arrays: dict[str, Any], by_column: bool = False):
        self.rule, self.rows, self.columns = rule, rows, columns
        self.heads, self.kv_heads = arrays["q"].shape[2], arrays["k"].shape[2]
        self.group = self.heads // self.kv_heads
        self.dim, self.vdim = arrays["q"].shape[3], arrays["v"].shape[3]
        self.plan: Schedule = schedule(rule, rows, columns, by_column=by_column)
        self.line, self.other = ("column", "row") if by_column else ("row", "column")
        self.arrays = {name: x for name, x in arrays.items() if x is not None}
        words = self.plan.words
        self.words = 0 if words is None else words.shape[1]
        if words is not None:
            self.arrays["words"] = jnp.asarray(words.reshape(-1))
        for name in ("row", "column", "kind", "start", "middle"):
            self.arrays[name] = jnp.asarray(getattr(self.plan, name))

    def call(self, kernel, grid, outputs, blocks: Blocks, interpret) -> Any:
        """Runs `kernel(program, refs, outputs)` for each of the grid's programs; references are to whole arrays.

        Args:
          outputs: (shape, dtype) of each output.
        """
        from jax.experimental.pallas import triton as plgpu  # here, so that the TPU's kernel does without Triton

        names = list(self.arrays)

        def body(*refs):
            kernel(self, dict(zip(names, refs)), refs[len(names) :])

        return pl.pallas_call(
            body,
            grid=grid,
            out_shape=[jax.ShapeDtypeStruct(*one) for one in outputs],
            compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
            interpret=interpret,
        )(*self.arrays.values())

    def queries(self, given, name, b, h, row):
        """A row of tiles' part of q or do: (rows, dim)."""
        return given[name][b, pl.ds(row * self.rows, self.rows), h, :]

    def keys(self, given, name, b, h, column):
        """A column of tiles' part of k or v: (columns, dim)."""
        kv_head = lax.div(h, jnp.int32(self.group)) if self.group > 1 else h
        return given[name][b, pl.ds(column * self.columns, self.columns), kv_head, :]

    def numbers(self, given, name, b, h, row):
        """A row of tiles' part of one of `NUMBERS`: (rows, 1)."""
        return given[name][b, h, pl.ds(row * self.rows, self.rows)][:, None]

    def tile(self, given, n, b, h, row, column, masked: bool) -> tiles.Tile:
        """The tile of visit n, with what is added to it and hidden in it."""
        query, key = pl.ds(row * self.rows, self.rows), pl.ds(column * self.columns, self.columns)
        bias = query_ids = key_ids = None
        if "bias" in given:
            full = [size > 1 for size in given["bias"].shape[:3]]
            at = (b if full[0] else 0, h if full[1] else 0)
            bias = given["bias"][*at, query, key] if full[2] else given["bias"][*at, 0, key][None, :]
        if "query_ids" in given:
            query_ids, key_ids = given["query_ids"][b, query][:, None], given["key_ids"][b, key][None, :]
        return tiles.Tile(
            self.rule,
            self.rows,
            self.columns,
            row,
            column,
            bias=bias,
            slope=given["slopes"][h] if "slopes" in given else None,
            query_ids=query_ids,
            key_ids=key_ids,
            words=[given["words"][n * self.words + w] for w in range(self.words)] or None,
            masked=masked,
        )

    def loop(self, given, line, step, carried):
        """`carried = step(n, other index, masked, carried)` over a line's visits."""
        start, middle, end = given["start"][line], given["middle"][line], given["start"][line + 1]

        def run(masked, n, carried):
            other = given[self.other][n]
            return step(n, other, masked, carried)

        if FULL in self.plan.kinds:
            carried = lax.fori_loop(start, middle, functools.partial(run, False), carried)
        if PARTIAL in self.plan.kinds:
            # An empty line has one visit, its last, in which there is nothing to see.
            end = jnp.where(given["kind"][end - 1] >= PARTIAL, end, middle)
            carried = lax.fori_loop(middle, end, functools.partial(run, True), carried)
        return carried


def forward(arrays: dict[str, Any], rule: Rule, blocks: Blocks, interpret: Any) -> tuple[Any, Any, Any]:
    """The attended values "batch time heads vdim"; of each row the largest score and the logarithm of the sum.

    The last two are float32 "batch heads time".
    """
    rows, columns = blocks.forward
    batch, time, heads, _ = arrays["q"].shape
    program = _Program(rule, rows, columns, arrays)

    def kernel(program, given, outputs):
        row, h, b = (pl.program_id(axis) for axis in range(3))
        q = program.queries(given, "q", b, h, row)

        def step(n, column, masked, carried):
            k, v = (program.keys(given, name, b, h, column) for name in "kv")
            s, _ = tiles.scores(program.tile(given, n, b, h, row, column, masked), q, k)
            return tiles.softmax_step(carried, s, v)

        values, *numbers = tiles.ending(program.loop(given, row, step, tiles.beginning(rows, program.vdim)))
        at = pl.ds(row * rows, rows)
        outputs[0][b, at, h, :] = values.astype(outputs[0].dtype)
        for ref, column in zip(outputs[1:], numbers):
            ref[b, h, at] = column[:, 0]

    outputs = [((batch, time, heads, program.vdim), arrays["q"].dtype), *[((batch, heads, time), jnp.float32)] * 2]
    return tuple(program.call(kernel, (time // rows, heads, batch), outputs, blocks, interpret))


def query_gradient(arrays: dict[str, Any], rule: Rule, blocks: Blocks, interpret: Any) -> Any:
    """The gradient of the queries, "batch time heads dim"."""
    rows, columns = blocks.backward
    batch, time, heads, dim = arrays["q"].shape
    program = _Program(rule, rows, columns, arrays)

    def kernel(program, given, outputs):
        row, h, b = (pl.program_id(axis) for axis in range(3))
        q, do = (program.queries(given, name, b, h, row) for name in ("q", "do"))
        numbers = [program.numbers(given, name, b, h, row) for name in NUMBERS]

        def step(n, column, masked, carried):
            k, v = (program.keys(given, name, b, h, column) for name in "kv")
            tile = program.tile(given, n, b, h, row, column, masked)
            _, ds, _ = tiles.gradients(tile, q, k, v, do, *numbers)
            return carried + tiles.dot(ds.astype(k.dtype), k, 1, 0)

        dq = program.loop(given, row, step, jnp.zeros((rows, dim), jnp.float32))
        outputs[0][b, pl.ds(row * rows, rows), h, :] = (dq * rule.scale).astype(outputs[0].dtype)

    outputs = [(arrays["q"].shape, arrays["q"].dtype)]
    return program.call(kernel, (time // rows, heads, batch), outputs, blocks, interpret)[0]


def key_value_gradients(arrays: dict[str, Any], rule: Rule, blocks: Blocks, interpret: Any) -> tuple[Any, Any]:
    """The gradients of keys and values, "batch source kv_heads dim": summed over the heads that share them."""
    rows, columns = blocks.backward
    batch, source, kv_heads, dim = arrays["k"].shape
    program = _Program(rule, rows, columns, arrays, by_column=True)
    group, vdim = program.group, program.vdim

    def kernel(program, given, outputs):
        column, kv_head, b = (pl.program_id(axis) for axis in range(3))
        k, v = (program.keys(given, name, b, kv_head * group, column) for name in "kv")

        def head(g, carried):
            h = kv_head * group + g

            def step(n, row, masked, carried):
                q, do = (program.queries(given, name, b, h, row) for name in ("q", "do"))
                numbers = [program.numbers(given, name, b, h, row) for name in NUMBERS]
                tile = program.tile(given, n, b, h, row, column, masked)
                p, ds, _ = tiles.gradients(tile, q, k, v, do, *numbers)
                dk, dv = carried
                return dk + tiles.dot(ds.astype(q.dtype), q, 0, 0), dv + tiles.dot(p.astype(do.dtype), do, 0, 0)

            return program.loop(given, column, step, carried)

        carried = jnp.zeros((columns, dim), jnp.float32), jnp.zeros((columns, vdim), jnp.float32)
        carried = lax.fori_loop(jnp.int32(0), jnp.int32(group), head, carried) if group > 1 else head(0, carried)
        at = pl.ds(column * columns, columns)
        outputs[0][b, at, kv_head, :] = (carried[0] * rule.scale).astype(outputs[0].dtype)
        outputs[1][b, at, kv_head, :] = carried[1].astype(outputs[1].dtype)

    outputs = [(arrays[name].shape, arrays[name].dtype) for name in "kv"]
    return tuple(program.call(kernel, (source // columns, kv_heads, batch), outputs, blocks, interpret))


def bias_gradient(arrays: dict[str, Any], rule: Rule, blocks: Blocks, interpret: Any) -> Any:
    """The gradient of the bias in float32, over all keys: "batch|1 heads|1 time|1 source".

    A program owns a tile and sums over the batch rows and heads for which it is broadcast.
    """
    rows, columns = blocks.backward
    (batch, time, heads, _), bias = arrays["q"].shape, arrays["bias"]
    source = arrays["k"].shape[1]
    own_batch, own_head, own_time = (n > 1 for n in bias.shape[:3])
    of_heads = 1 if own_head else heads
    count = of_heads * (1 if own_batch else batch)
    program = _Program(rule, rows, columns, arrays)

    def kernel(program, given, outputs):
        n, own_h, own_b = (pl.program_id(axis) for axis in range(3))
        row, column = given["row"][n], given["column"][n]

        def one(e, carried):
            b = own_b if own_batch else lax.div(e, jnp.int32(of_heads))
            h = own_h if own_head else lax.rem(e, jnp.int32(of_heads))
            q, do = (program.queries(given, name, b, h, row) for name in ("q", "do"))
            k, v = (program.keys(given, name, b, h, column) for name in "kv")
            numbers = [program.numbers(given, name, b, h, row) for name in NUMBERS]
            tile = program.tile(given, n, b, h, row, column, True)
            return carried + tiles.gradients(tile, q, k, v, do, *numbers)[2]

        total = lax.fori_loop(jnp.int32(0), jnp.int32(count), one, jnp.zeros((rows, columns), jnp.float32))
        key = pl.ds(column * columns, columns)
        if own_time:
            outputs[0][own_b, own_h, pl.ds(row * rows, rows), key] = total
        else:
            outputs[0][own_b, own_h, row, key] = jnp.sum(total, axis=0)

    lead = bias.shape[:2]
    outputs = [((*lead, time if own_time else time // rows, source), jnp.float32)]
    found = program.call(kernel, (len(program.plan.row), lead[1], lead[0]), outputs, blocks, interpret)[0]
    # Tiles that no visit wrote hold anything at all.
    written = np.repeat(program.plan.tiles, columns, axis=1)
    if own_time:
        return jnp.where(np.repeat(written, rows, axis=0), found, 0.0)
    return jnp.sum(jnp.where(written, found, 0.0), axis=2, keepdims=True)
