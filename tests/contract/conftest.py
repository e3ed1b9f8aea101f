"""Random numbers that compile fast: threefry's rounds, once for each parameter, took as long as the train step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import define_prng_impl

_BITS = {8: jnp.uint8, 16: jnp.uint16, 32: jnp.uint32}


def _mixed(x, y):
    """A number of 32 bits from two, by the last steps of MurmurHash3 (Appleby, public domain)."""
    x = jnp.asarray(x, jnp.uint32) ^ (jnp.asarray(y).astype(jnp.uint32) * np.uint32(0x9E3779B9))
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _key(x):
    """As much data as threefry's keys have, so that a state's key may go on as one of those."""
    return jnp.stack([x, _mixed(x, 2)], axis=-1)


def _split(key, shape):
    return _key(_mixed(key[0], jnp.arange(1, 1 + math.prod(shape), dtype=jnp.uint32))).reshape(*shape, 2)


def _random_bits(key, width, shape):
    counts = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    return _mixed(_mixed(key[0], 3), counts).reshape(shape).astype(_BITS[width])


HASH = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: _key(_mixed(seed, 4)),
    split=_split,
    random_bits=_random_bits,
    fold_in=lambda key, data: _key(_mixed(_mixed(key[0], 5), data)),
    name="hash",
    tag="hash",
)


@pytest.fixture(scope="module")
def drawn_quickly():
    """Keys made by `jax.random.key` and `wrap_key_data` are of `HASH`: initial parameters, batches, draws of a step.

    Not those of the steps on two devices, which a process of its own takes with threefry's keys, as in training.
    """
    with pytest.MonkeyPatch.context() as patched:
        key, wrapped = jax.random.key, jax.random.wrap_key_data
        patched.setattr(jax.random, "key", lambda seed, impl=None: key(seed, impl=impl or HASH))
        patched.setattr(jax.random, "wrap_key_data", lambda data, impl=None: wrapped(data, impl=impl or HASH))
        yield
