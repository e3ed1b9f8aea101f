"""The flash attention kernels, interpreted on a CPU, against the dense oracle: values, gradients and logsumexp."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from arch_jax.errors import UsageError
from arch_jax.ops.attention.dot_product import attention_reference
from arch_jax.ops.attention.patterns import BigBird, Fixed, Strided
from arch_jax.ops.pallas.flash import Blocks, flash_attention
from arch_jax.ops.platform import acting_as

BATCH, HEADS, KV_HEADS, DIM = 2, 4, 2, 8
PLATFORMS = ("tpu", "gpu")
both = pytest.mark.parametrize("platform", PLATFORMS)


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def inputs(time, source=None, vdim=DIM, dtype=jnp.float32):
    source = time if source is None else source
    return (
        draw(BATCH, time, HEADS, DIM, dtype=dtype),
        draw(BATCH, source, KV_HEADS, DIM, seed=1, dtype=dtype),
        draw(BATCH, source, KV_HEADS, vdim, seed=2, dtype=dtype),
    )


def a_bias(shape, time, source=None):
    sizes = {"b": BATCH, "h": HEADS, "t": time, "s": time if source is None else source}
    return draw(*(sizes.get(c, 1) for c in shape), seed=3)


def ids(time, seed=0):
    """Sorted segments 0 (padding, which sees nothing), 1 and 2."""
    return jnp.asarray(np.sort(np.random.default_rng(seed).integers(0, 3, size=(BATCH, time)), axis=1), jnp.int32)


SLOPES = 2.0 ** -jnp.arange(1, HEADS + 1)


def values_and_gradients(form, arrays, **given):
    """Output, logsumexp, and the gradients of a fixed weighting of both in every array."""

    def loss(*arrays):
        bias = arrays[3] if len(arrays) > 3 else None
        out, lse = form(*arrays[:3], bias=bias, logsumexp=True, **given)
        lse = jnp.maximum(lse, -1e3)  # -inf is compared too, but has no weight
        weighed = out.astype(jnp.float32) * draw(*out.shape, seed=9), jnp.where(lse > -1e3, jnp.sin(lse), 0.0)
        return sum(map(jnp.sum, weighed)), (out, lse)

    compiled = jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True))
    (_, (out, lse)), gradients = compiled(*arrays)
    return {"out": out, "lse": lse} | dict(zip(("dq", "dk", "dv", "dbias"), gradients))


def check(arrays, tolerance=1e-5, blocks=Blocks(16, 16), interpret=True, platforms=PLATFORMS, **given):  # noqa: B008
    """Each platform's kernels give what the oracle gives, which is computed once; what they gave."""
    given = {"scale": 0.4} | given
    ids = {name: given.pop(name, None) for name in ("query_ids", "key_ids")}
    form = functools.partial(flash_attention, blocks=blocks, interpret=interpret, **ids)
    segments = None if ids["query_ids"] is None else tuple(ids.values())
    oracle = functools.partial(attention_reference, segment_ids=segments)
    expected = values_and_gradients(oracle, arrays, **given)
    found = []
    for platform in platforms:
        found.append(values_and_gradients(functools.partial(form, platform=platform), arrays, **given))
        for name, b in expected.items():
            assert found[-1][name].dtype == b.dtype, (platform, name)
            a, b = np.asarray(found[-1][name], np.float64), np.asarray(b, np.float64)
            assert np.abs(a - b).max() <= tolerance * np.abs(b).max(), (platform, name)
    return [jax.tree.map(np.asarray, got) for got in found]


def test_queries_and_keys_of_different_lengths_segments_and_head_sizes():
    arrays = (*inputs(37, 21, vdim=12), a_bias("1h11", 37))
    check(arrays, query_ids=ids(37), key_ids=ids(21, seed=1))


@pytest.mark.thorough
def test_window_soft_cap_and_a_bias_of_keys():
    check((*inputs(40), a_bias("b11s", 40)), window=5, softcap=2.0)


def test_everything_together():
    given = {"query_ids": ids(53), "key_ids": ids(53), "causal": True, "window": 30, "softcap": 2.0, "alibi": SLOPES}
    arrays, blocks = (*inputs(53), a_bias("1hts", 53)), Blocks(16, 32, 32, 8)
    check(arrays, blocks=blocks, pattern=Strided(stride=7), **given)


@pytest.mark.parametrize(
    ("pattern", "causal"),
    [
        (BigBird(block=8, random_blocks=1), True),  # several squares in a tile: bits
        pytest.param(  # several tiles in a square
            BigBird(block=32, random_blocks=0, global_blocks=1, window_blocks=1), False, marks=pytest.mark.thorough
        ),
        pytest.param(Fixed(stride=9, summary=2), True, marks=pytest.mark.thorough),
    ],
    ids=repr,
)
def test_sparse_patterns(pattern, causal):
    check(inputs(96), blocks=Blocks(16, 32), pattern=pattern, causal=causal)


@pytest.mark.thorough
def test_bfloat16_stays_within_its_rounding():
    arrays = (*inputs(37, dtype=jnp.bfloat16), a_bias("bhts", 37))
    check(arrays, tolerance=1.5e-2, causal=True)


def test_rows_that_see_nothing_give_zero_and_no_nan_even_at_logits_of_1e4():
    q, k, v = inputs(24)
    query_ids, bias = np.ones((BATCH, 24), np.int32), np.zeros((1, HEADS, 24, 24), np.float32)
    query_ids[0] = query_ids[1, 20:] = 0
    bias[:, :, 3], bias[:, 0, 5] = -np.inf, -1e30
    query_ids, bias = map(jnp.asarray, (query_ids, bias))
    scores = np.einsum("bthd,bshd->bhts", np.asarray(q)[:, :, ::2], k)
    scale = 3e4 / float(np.abs(scores).max())
    # Scores of 3e4 are rounded to 2e-3 in float32, here and in the oracle.
    for got in check((q, k, v, bias), 1e-2, query_ids=query_ids, key_ids=query_ids, scale=scale):
        assert all(np.isfinite(x).all() for x in got.values())
        for blind in ((0,), (1, slice(20, 24)), (1, 3)):
            assert not np.any(got["out"][blind])
            assert not np.any(got["dq"][blind])
        assert not np.any(got["dk"][0])
        assert np.any(got["out"][1, 5, 0])  # -1e30 for every key alike is a number as any other


@pytest.mark.parametrize("platform", ["tpu", pytest.param("gpu", marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("given", "rows", "keys"),
    [
        ({"causal": True, "window": 8}, slice(48, 64), slice(0, 16)),
        (
            {"pattern": BigBird(block=16, window_blocks=1, global_blocks=1, random_blocks=0)},
            slice(16, 32),
            slice(48, 64),
        ),
    ],
    ids=["window", "pattern"],
)
def test_what_is_hidden_from_all_is_never_read(platform, given, rows, keys):
    """NaN in keys and values that only skipped tiles hold: a kernel that merely masked them would pass it on."""
    q, k, v = inputs(64)
    hidden = (np.isin(np.arange(64), np.arange(64)[keys]))[:, None, None]
    k, v = (jnp.asarray(np.where(hidden, np.float32("nan"), x)) for x in (k, v))

    @jax.jit
    def out_and_dq(q):
        form = functools.partial(flash_attention, platform=platform, blocks=Blocks(16, 16), interpret=True, **given)
        out, back = jax.vjp(lambda q: form(q, k, v, scale=0.4), q)
        # Of gradients, only those rows' are asked for: elsewhere NaN was rightly read.
        return out, back(jnp.zeros_like(out).at[:, rows].set(1.0))[0]

    for x in map(np.asarray, out_and_dq(q)):
        assert np.isfinite(x[:, rows]).all()
        assert np.isnan(x).any()


@pytest.mark.thorough
def test_a_tpus_memories_simulated():
    """Uninitialised memory is NaN there, and what is written outside its block's visits is found out."""
    q, k, v = (x[:1, :, :2] for x in inputs(20))
    given = {"causal": True, "window": 12, "query_ids": ids(20)[:1], "key_ids": ids(20)[:1]}
    arrays = q, k[:, :, :1], v[:, :, :1]
    check(arrays, interpret=pltpu.InterpretParams(), platforms=("tpu",), **given)


@both
def test_seeds_side_by_side(platform):
    """vmap over a leading axis, which is how several seeds train at once."""
    arrays = [np.stack([x, np.asarray(x)[::-1]]) for x in inputs(20)]
    form = functools.partial(flash_attention, platform=platform, blocks=Blocks(16, 16), interpret=True)
    form = functools.partial(form, causal=True, scale=0.4)
    oracle = jax.jit(functools.partial(attention_reference, causal=True, scale=0.4))
    expected = [oracle(*(x[i] for x in arrays)) for i in range(2)]
    np.testing.assert_allclose(jax.jit(jax.vmap(form))(*arrays), np.stack(expected), atol=1e-5)


def test_wrong_usage_is_named():
    q, k, v = inputs(8)
    with pytest.raises(UsageError, match="platform of a Pallas kernel"):
        flash_attention(q, k, v, scale=1.0, platform="cpu")
    with pytest.raises(UsageError, match="unknown platform 'cuda'; "), acting_as("cuda"):
        pass
    with pytest.raises(UsageError, match="was given float16; expected float32 or bfloat16"):
        flash_attention(*(x.astype(jnp.float16) for x in (q, k, v)), scale=1.0)
    with pytest.raises(UsageError, match=r"blocks\.rows is 24; expected a multiple of 128"):
        flash_attention(q, k, v, scale=1.0, blocks=Blocks(24, 24), platform="tpu")
    wide = jnp.zeros((1, 8, 1, 300))
    with pytest.raises(UsageError, match="the head size is 300; expected at most 256"):
        flash_attention(wide, wide, wide, scale=1.0)
    long = jax.ShapeDtypeStruct((1, 65536, 1, 64), jnp.bfloat16)
    form = functools.partial(flash_attention, scale=1.0, causal=True, pattern=Strided(), platform="tpu")
    assert jax.eval_shape(form, long, long, long).shape == long.shape
    longer = jax.ShapeDtypeStruct((1, 131072, 1, 64), jnp.bfloat16)
    with pytest.raises(UsageError, match=r"524800 numbers don't fit .* as with blocks=Blocks\(256, 256\)"):
        jax.eval_shape(form, longer, longer, longer)
