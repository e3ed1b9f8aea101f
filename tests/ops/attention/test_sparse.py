"""Attention under sparse patterns, with ALiBi and with its logsumexp: the fast forms against the oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.attention import sparse
from arch_jax.ops.attention.dot_product import attention, attention_reference, choose, explain, implementations
from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, SlidingWindow, Strided
from arch_jax.ops.attention.sparse import TilePlan, tile_size

BATCH, TIME, HEADS, KV, DIM, VDIM = 2, 37, 4, 2, 6, 5
PATTERNS = [
    SlidingWindow(5),
    Strided(6),
    Fixed(5, 1, "summary"),
    Longformer(4, 3),
    BigBird(4, 3, 2, 2),
    BigBird(16, 1, 1, 0),
]
IDS = np.sort(np.random.default_rng(3).integers(0, 3, size=(BATCH, TIME)), axis=1).astype(np.int32)
SLOPES = np.array([0.5, 0.25, 0.1, 0.0])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(sparse.TILE, "cpu", 8)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def inputs(spread=1.0, time=TIME):
    shapes = (BATCH, time, HEADS, DIM), (BATCH, time, KV, DIM), (BATCH, time, KV, VDIM)
    return tuple(spread * draw(*shape, seed=i) for i, shape in enumerate(shapes))


def outputs_and_gradients(form, arrays):
    """What the form gives (the logsumexp with the rest), and the gradients of a weighting of all that is finite."""

    def loss(*arrays):
        outs = form(*arrays)
        outs = outs if isinstance(outs, tuple) else (outs,)
        weights = (draw(*x.shape, seed=9).astype(x.dtype) for x in outs)
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), x, 0) * w) for x, w in zip(outs, weights)), outs

    (_, outs), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))(*arrays)
    return *outs, *gradients


@functools.cache
def dense(causal):
    """Attention without a pattern, in float64."""
    return jax.jit(functools.partial(attention_reference, causal=causal))(*inputs())


def assert_exact(arrays, **settings):
    got, expected = (
        outputs_and_gradients(functools.partial(form, **settings), arrays)
        for form in (functools.partial(attention, implementation="xla"), attention_reference)
    )
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    return got


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        *((pattern, True) for pattern in PATTERNS[1:5]),
        (PATTERNS[0], False),
        pytest.param(PATTERNS[0], True, marks=pytest.mark.thorough),
        pytest.param(PATTERNS[5], True, marks=pytest.mark.thorough),
        *(pytest.param(pattern, False, marks=pytest.mark.thorough) for pattern in PATTERNS[1:]),
    ],
    ids=repr,
)
def test_patterns_are_exact(pattern, causal):
    with jax.enable_x64(True):
        out, *_ = assert_exact(inputs(), pattern=pattern, causal=causal)
        assert np.abs(np.asarray(out) - dense(causal)).max() > 1e-3


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        (PATTERNS[1], (1, HEADS, TIME, TIME)),
        pytest.param(None, (1, HEADS, TIME, TIME), marks=pytest.mark.thorough),
        pytest.param(PATTERNS[3], (BATCH, 1, 1, TIME), marks=pytest.mark.thorough),
        pytest.param(PATTERNS[4], (1, 1, TIME, 1), marks=pytest.mark.thorough),
    ],
    ids=repr,
)
def test_everything_together_is_exact(pattern, shape):
    """Every term at once, with a bias of the shape, which has its gradient."""
    with jax.enable_x64(True):
        mask = jnp.asarray(np.asarray(draw(BATCH, 1, 1, TIME, seed=5)) > -1)
        settings = {"causal": True, "window": 20, "segment_ids": jnp.asarray(IDS), "softcap": 2.0, "scale": 0.7}
        settings |= {"mask": mask, "alibi": jnp.asarray(SLOPES), "logsumexp": True, "pattern": pattern}
        with_bias = lambda form, q, k, v, bias: form(q, k, v, bias=bias, **settings)
        got, expected = (
            outputs_and_gradients(functools.partial(with_bias, form), (*inputs(), draw(*shape, seed=7)))
            for form in (functools.partial(attention, implementation="xla"), attention_reference)
        )
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("implementation", implementations())
def test_alibi_is_its_definition(implementation):
    """Press et al.: the score of query i and key j falls by slope |i - j|; no gradient passes to the slopes."""
    with jax.enable_x64(True):
        i = np.arange(TIME)
        bias = jnp.asarray(-SLOPES[:, None, None] * abs(i[:, None] - i))[None]
        form = functools.partial(attention, implementation=implementation)
        for causal in (True, False):
            got = outputs_and_gradients(functools.partial(form, alibi=jnp.asarray(SLOPES), causal=causal), inputs())
            expected = outputs_and_gradients(functools.partial(attention_reference, bias=bias, causal=causal), inputs())
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        slope = jax.jit(jax.grad(lambda s: jnp.sum(form(*inputs(), alibi=s))))(SLOPES)
        np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("implementation", implementations())
@pytest.mark.parametrize("pattern", [None, Longformer(4, 1)], ids=repr)
def test_logsumexp_is_that_of_the_scores(implementation, pattern):
    q, k, v = inputs()
    form = functools.partial(attention, segment_ids=jnp.asarray(IDS), pattern=pattern, implementation=implementation)
    with_total = functools.partial(form, logsumexp=True)
    out, total = jax.jit(with_total)(q, k, v)
    scores = np.einsum("bthd,bshd->bhts", q, np.repeat(k, HEADS // KV, axis=2)) * DIM**-0.5
    visible = (IDS[:, :, None] == IDS[:, None]) & (IDS > 0)[:, :, None]
    visible = visible if pattern is None else visible & pattern.mask(TIME, TIME)
    expected = np.logaddexp.reduce(np.where(visible[:, None], scores, -np.inf), axis=-1)
    np.testing.assert_allclose(total, expected, rtol=1e-5, atol=1e-5)
    assert np.isneginf(total).any(axis=(1, 2)).any()
    np.testing.assert_allclose(out, jax.jit(form)(q, k, v), rtol=1e-5, atol=1e-6)
    half = jax.eval_shape(with_total, *(jax.ShapeDtypeStruct(x.shape, jnp.bfloat16) for x in (q, k, v)))
    assert [x.dtype for x in half] == [jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize("implementation", implementations())
@pytest.mark.parametrize(
    "pattern", [PATTERNS[4], *(pytest.param(p, marks=pytest.mark.thorough) for p in PATTERNS[1:4])], ids=repr
)
def test_only_what_the_pattern_shows_has_influence(implementation, pattern):
    """The Jacobian is exactly 0 where a pair is hidden: by the pattern, by causality, or as of another segment."""
    q, k, v = inputs()
    ids = jnp.asarray(IDS)
    form = functools.partial(attention, q, pattern=pattern, causal=True, segment_ids=ids, implementation=implementation)
    rows = np.eye(TIME, dtype=np.float32)[:, None, :, None, None] * np.asarray(draw(BATCH, TIME, HEADS, VDIM))
    allowed = pattern.mask(TIME, TIME) & np.tril(np.ones((TIME, TIME), bool))
    allowed = allowed & (IDS[:, :, None] == IDS[:, None]) & (IDS > 0)[:, :, None]
    for of in jax.jit(lambda k, v: jax.vmap(jax.vjp(form, k, v)[1])(rows))(k, v):  # in the keys, in the values
        seen = np.any(np.asarray(of) != 0, axis=(3, 4)).swapaxes(0, 1)
        assert not seen[~allowed].any()
    assert seen[allowed].mean() > 0.95


@pytest.mark.parametrize("implementation", implementations())
@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": BigBird(4)},
        {"logsumexp": True},
        pytest.param({"pattern": Strided(6)}, marks=pytest.mark.thorough),
    ],
    ids=repr,
)
def test_rows_that_see_nothing_and_large_logits(implementation, settings):
    form = functools.partial(attention, implementation=implementation, **settings)
    nothing = jnp.zeros((BATCH, TIME), jnp.int32)
    out, *rest = outputs_and_gradients(functools.partial(form, segment_ids=nothing), inputs())
    total = rest.pop(0) if "logsumexp" in settings else None
    assert total is None or np.isneginf(total).all()
    for x in (out, *rest):
        np.testing.assert_array_equal(x, 0)
    for x in outputs_and_gradients(form, inputs(spread=100.0)):  # scores of tens of thousands
        assert np.isfinite(x).all()


def test_a_window_of_the_length_is_dense():
    q, k, v = inputs()
    dense = jax.jit(attention_reference)(q, k, v)
    patterns = SlidingWindow(TIME), Longformer(2 * TIME, 0), Strided(TIME), BigBird(8, random_blocks=5)
    every = jax.jit(lambda q, k, v: [attention(q, k, v, pattern=pattern) for pattern in patterns])
    for pattern, out in zip(patterns, every(q, k, v), strict=True):
        np.testing.assert_allclose(out, dense, rtol=1e-5, atol=1e-6, err_msg=repr(pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("causal", [True, False])
def test_loops_visit_every_kept_tile_once_and_are_few(pattern, causal):
    time, tile = 1000, tile_size(pattern.granularity, 64)
    plan = TilePlan(pattern, time, time, tile, causal, None, None, False)
    visited = np.zeros((-(-time // tile),) * 2, int)
    loops = plan.loops()
    for rows, kept, valid in loops:
        for n, row in enumerate(rows):
            np.add.at(visited[row], kept[n][valid[n]], 1)
    expected = pattern.tiles(time, time, tile, tile)
    np.testing.assert_array_equal(visited, np.tril(expected) if causal else expected)
    assert len(loops) <= sparse.GROUPS
    assert sorted(np.concatenate([loop.rows for loop in loops])) == list(range(len(visited)))


def test_work_and_memory_grow_with_the_tiles_kept():
    """A window and a few global tokens: tiles visited, padding included, and temporaries go with the length."""
    pattern, memory, visits = Longformer(16, 4), [], []
    for time in (512, 1024, 2048):
        plan = TilePlan(pattern, time, time, 8, False, None, None, False)
        visits.append(sum(loop.kept.size for loop in plan.loops()))
        arrays = [jax.ShapeDtypeStruct((1, time, 1, 4), jnp.float32)] * 3
        loss = lambda q, k, v: jnp.sum(attention(q, k, v, pattern=pattern) ** 2)
        compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    for grown in (visits, memory):
        assert grown[2] / grown[1] < 2.2
        assert grown[1] / grown[0] < 2.2


def test_tiles_do_not_cut_the_squares_of_a_pattern():
    assert [tile_size(g, 64) for g in (1, 4, 20, 32, 64, 128, 256, 96, 1000, 127)] == [
        64, 64, 60, 32, 64, 128, 128, 96, 125, 127,
    ]  # fmt: skip


def test_what_auto_takes_and_why():
    assert choose(70, 70, "cpu") == "xla"
    assert choose(0, 70, "tpu") == "reference"
    assert "pallas" in implementations("tpu")
    assert "cudnn" in implementations("gpu")
    assert implementations("cpu") == ("reference", "xla")
    assert choose(70, 70, "tpu") == "pallas"
    for facts, word in (({"mask": True}, "mask"), ({"dim": 512}, "512"), ({"dtype": jnp.float64}, "float64")):
        choice = explain(70, 70, "tpu", **facts)
        assert choice.implementation == "xla"
        assert word in choice.reason
    assert explain(70, 70, "gpu").implementation == "xla"
    assert "by name" in explain(70, 70, "gpu").reason


@pytest.mark.parametrize("settings", [{"segment_ids": jnp.asarray(IDS)}, {"pattern": Strided(6), "logsumexp": True}])
def test_the_kernel_is_called_with_what_it_needs(monkeypatch, settings):
    """There is no TPU here: the kernel is interpreted, and gives what the oracle gives."""
    from arch_jax.ops.pallas import flash

    real, calls = flash.flash_attention, []

    def interpreted(*arrays, **options):
        calls.append(options)
        return real(*arrays, **options, platform="tpu", interpret=True)

    monkeypatch.setattr(flash, "flash_attention", interpreted)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    arrays = tuple(x.astype(jnp.float32) for x in inputs())
    settings = {"causal": True, "alibi": jnp.asarray(SLOPES, jnp.float32), "softcap": 3.0, "scale": 0.4, **settings}
    got, expected = (jax.jit(functools.partial(form, **settings))(*arrays) for form in (attention, attention_reference))
    assert len(calls) == 1
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match='"pallas" takes no mask; expected segment ids, a window, or "xla"'):
        attention(*arrays, mask=jnp.ones((1, 1, TIME, TIME), bool), implementation="pallas")


def test_cudnn_is_called_with_what_it_knows(monkeypatch):
    """There is no GPU here: XLA's form of the same jax function stands in, and gives what ours gives."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    real, calls = jax.nn.dot_product_attention, []

    def stand_in(*arrays, implementation, **settings):
        calls.append(implementation)
        return real(*arrays, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    half = lambda x: jnp.asarray(np.asarray(x).astype(jnp.bfloat16))
    low = tuple(half(draw(BATCH, TIME, n, 8, seed=n)) for n in (HEADS, KV, KV))
    for settings in (
        {"causal": True},
        {"window": 5},
        {"causal": True, "window": 5, "scale": 0.3},
        {"segment_ids": jnp.asarray(IDS), "causal": True},
        {
            "mask": jnp.asarray(np.asarray(draw(1, 1, TIME, TIME)) > 0),
            "bias": half(draw(1, HEADS, TIME, TIME)),
        },
    ):
        form = functools.partial(attention, implementation="cudnn", **settings)
        got = np.asarray(jax.jit(form)(*low), np.float32)
        oracle = functools.partial(attention_reference, **settings)
        expected = jax.jit(oracle)(*(np.asarray(x, np.float32) for x in low))
        np.testing.assert_allclose(got, expected, atol=4e-2)
    assert calls == ["cudnn"] * 5
    for settings, missing in (({"softcap": 1.0}, "softcap"), ({"logsumexp": True}, "logsumexp")):
        with pytest.raises(UsageError, match=f'"cudnn" has no {missing}; .*"pallas"'):
            attention(*low, implementation="cudnn", **settings)
    with pytest.raises(UsageError, match="float32; expected bfloat16 or float16"):
        attention(*(x.astype(jnp.float32) for x in low), implementation="cudnn")


def test_mistakes_are_named():
    q, k, v = inputs()
    half = k[:, :5], v[:, :5]
    cases = [
        ((q, k, v), {"implementation": "pallas"}, "'pallas' does not exist on cpu, only on gpu and tpu; .*\"xla\""),
        ((q, k, v), {"implementation": "cudnn"}, "'cudnn' does not exist on cpu, only on gpu"),
        ((q, *half), {"pattern": Strided(4)}, "pattern compares positions, but there are 37 queries and 5 keys"),
        ((q, *half), {"alibi": jnp.ones(HEADS)}, "alibi compares positions, .* pass a bias"),
    ]
    for arrays, settings, message in cases:
        with pytest.raises(UsageError, match=message):
            attention(*arrays, **settings)
    with pytest.raises(UsageError, match=r"alibi has the shape \(3,\); expected .* \(4,\)"):
        attention.__wrapped__(q, k, v, alibi=jnp.ones(3))
