"""The kernels are lowered for TPUs and GPUs on a machine that has neither; block shapes that don't suit fail here."""

import jax
import jax.numpy as jnp
import pytest

from arch_jax.ops.attention.patterns import BigBird, Fixed, Longformer, Strided
from arch_jax.ops.pallas.flash import flash_attention
from arch_jax.ops.platform import acting_as

S = jax.ShapeDtypeStruct
TARGETS = {"tpu": ("tpu", "tpu_custom_call"), "gpu": ("cuda", "__gpu$xla.gpu.triton")}


def kernels(platform, shape, kv_heads, dtype, bias=None, segments=False, alibi=False, **given) -> int:
    """How many kernels are in the program for the output and all gradients."""
    batch, time, heads, dim = shape
    arrays = {"q": S(shape, dtype), "k": S((batch, time, kv_heads, dim), dtype)}
    arrays["v"] = arrays["k"]
    if bias is not None:
        arrays["bias"] = S(bias, jnp.float32)
    constants = {"query_ids": S((batch, time), jnp.int32), "key_ids": S((batch, time), jnp.int32)} if segments else {}
    if alibi:
        constants["alibi"] = S((heads,), jnp.float32)

    def loss(arrays, constants):
        return jnp.sum(flash_attention(**arrays, **constants, scale=dim**-0.5, **given).astype(jnp.float32))

    with acting_as(platform):
        traced = jax.jit(jax.value_and_grad(loss)).trace(arrays, constants)
    target, call = TARGETS[platform]
    text = traced.lower(lowering_platforms=(target,)).as_text()
    return text.count(call)


CASES = {
    "plain": dict(shape=(1, 512, 4, 64), kv_heads=4, dtype=jnp.bfloat16),
    "causal, odd lengths": dict(shape=(2, 300, 4, 40), kv_heads=2, dtype=jnp.float32, causal=True),
    "head size 256": dict(shape=(1, 256, 2, 256), kv_heads=1, dtype=jnp.float32, window=100),
    "one token": dict(shape=(1, 1, 2, 16), kv_heads=1, dtype=jnp.float32, causal=True, segments=True),
    "big bird": dict(shape=(1, 1024, 2, 64), kv_heads=1, dtype=jnp.bfloat16, pattern=BigBird(), causal=True),
    "strided": dict(shape=(1, 512, 2, 64), kv_heads=1, dtype=jnp.bfloat16, pattern=Strided(100), causal=True),
    "fixed": dict(shape=(1, 512, 2, 64), kv_heads=1, dtype=jnp.bfloat16, pattern=Fixed(100), causal=True),
    "longformer": dict(shape=(1, 512, 2, 64), kv_heads=1, dtype=jnp.bfloat16, pattern=Longformer(100)),
}


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.thorough] * (n in ("one token", "strided", "fixed"))) for n in CASES]
)
def test_forward_and_backward_are_lowered(name, platform):
    assert kernels(platform, **CASES[name]) == 3  # out, dq, and dk with dv


@pytest.mark.parametrize("platform", TARGETS)
@pytest.mark.parametrize("bias", [(1, 4, 300, 300), (2, 1, 1, 300)])
def test_everything_together_is_lowered(platform, bias):
    more = {"causal": True, "window": 90, "softcap": 3.0, "segments": True, "alibi": True}
    assert kernels(platform, (2, 300, 4, 64), 2, jnp.float32, bias=bias, **more) == 4


@pytest.mark.parametrize("platform", TARGETS)
def test_wider_defaults_change_nothing(platform):
    """Where Python's integers become int64 and floats float64, indices and sums stay of 32 bits."""
    with jax.enable_x64(True):
        more = {"causal": True, "softcap": 3.0, "segments": True, "alibi": True, "pattern": Fixed(50)}
        assert kernels(platform, (2, 300, 4, 64), 2, jnp.float32, bias=(1, 1, 300, 300), **more) == 4
