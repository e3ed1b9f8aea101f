"""A checkpoint's record of a state: its leaves by name, and checksums computed where the arrays are.

A file system, a flaky memory module or an interrupted copy can flip a bit, and neither Orbax nor TensorStore notices:
the restored parameters are silently wrong. So every leaf gets two 32-bit sums over its bits,

  first  = sum_i  w_i * (mix(i) | 1)    mod 2^32
  second = sum_i  mix(w_i + c * i)      mod 2^32

with `w_i` the i-th word of the array in row-major order and `mix` the finalizer of MurmurHash3, a bijection on 32 bits
(Appleby, 2011). Any change to one word changes both: the first because an odd factor is invertible mod 2^32, the second
because `mix` is a bijection. Sums that wrap around do not depend on the order of their terms, so the same array has the
same checksum however it is sharded, and on every kind of device.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import PyTree

from arch_jax.errors import UsageError

# Odd, and far from a multiple of a small number: neighbouring positions are pushed apart (Knuth's golden ratio).
_SPREAD = 0x9E3779B1
# Values of an array of a CPU below which numpy sums it: in less than 2 ms, where a program takes 30 to compile.
_SMALL = 100_000


def _mix(word: Any, number: Any) -> Any:
    """MurmurHash3's finalizer on uint32 arrays of jax or numpy (`number` is the matching uint32 constructor)."""
    word = (word ^ (word >> number(16))) * number(0x85EBCA6B)
    word = (word ^ (word >> number(13))) * number(0xC2B2AE35)
    return word ^ (word >> number(16))


def _terms(words: Any, position: Any, number: Any) -> tuple[Any, Any]:
    """The terms of the two sums, for words at row-major positions (both uint32)."""
    return words * (_mix(position, number) | number(1)), _mix(words + position * number(_SPREAD), number)


def _bits(dtype: Any) -> int:
    """Bits in one value of a real dtype (4 for int4, though numpy keeps it in a byte)."""
    return jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).bits


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array as uint32: one word a value, or a trailing axis of words for 64 bits and for complex."""
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], -1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = _bits(array.dtype)
    if bits >= 32:
        return lax.bitcast_convert_type(array, jnp.uint32)
    return lax.bitcast_convert_type(array, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)


@jax.jit
def _device_sums(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums of a non-empty array, as two scalars: a scalar can only come back replicated, whatever the sharding.

    One small program a shape (not one a tree): parameters, both Adam moments and their average share it, it serves
    every model with such a shape, and compiling 100 leaves as one program took 1.3 s of the first save.
    """
    words = _words(array)
    position = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        shape = [length if other == axis else 1 for other, length in enumerate(words.shape)]
        position = position + np.uint32(stride % 2**32) * lax.iota(jnp.uint32, words.shape[axis]).reshape(shape)
        stride *= words.shape[axis]
    first, second = _terms(words, position, jnp.uint32)
    # One reduction for both: XLA on CPU reads the array once (4 ms for 100 MB instead of 95).
    zero = jnp.zeros((), jnp.uint32)
    return lax.reduce((first, second), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), tuple(range(words.ndim)))


def _host_sums(array: np.ndarray) -> tuple[int, int]:
    """The same sums for a numpy array, so that 64-bit values need no 64-bit mode."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.itemsize >= 4:
        words = flat.view(np.uint32)
    else:
        words = flat.view(np.dtype(f"uint{8 * flat.dtype.itemsize}")).astype(np.uint32)
        if flat.dtype != np.bool_ and _bits(flat.dtype) < 8:
            words &= np.uint32(2 ** _bits(flat.dtype) - 1)
    first, second = _terms(words, np.arange(len(words), dtype=np.uint32), np.uint32)
    return int(first.sum(dtype=np.uint32)), int(second.sum(dtype=np.uint32))


def _on_host(array: jax.Array | np.ndarray) -> bool:
    """True for what numpy sums: arrays of its own, and small ones of a CPU, whose shapes need no program compiled."""
    if isinstance(array, np.ndarray):
        return True
    (device, *others) = array.sharding.device_set
    return not others and device.platform == "cpu" and array.is_fully_addressable and array.size <= _SMALL


def _shares_threads(array: jax.Array | np.ndarray) -> bool:
    """True for an array on several devices of one CPU.

    They share its threads, and programs that each wait for all devices, under way together, take them all and wait for
    ever: on 2 busy cores, saves of runs that were resumed with mesh.fsdp=2 did not end.
    """
    if isinstance(array, np.ndarray):
        return False
    (device, *others) = array.sharding.device_set
    return bool(others) and device.platform == "cpu"


def checksums(arrays: Mapping[str, jax.Array | np.ndarray]) -> dict[str, str]:
    """The checksum of each array, by name: 16 hexadecimal digits, equal for equal bits.

    Arrays of jax are summed on their devices under jit (bool, integers, floats of 4 to 64 bits, complex; any shape,
    also scalars and empty ones; any sharding, also over several processes, all of which must call this); arrays of
    numpy, and small ones of a CPU, by numpy. Typed keys come as their `jax.random.key_data`. Waits for the sums, not
    longer.
    """
    sums: dict[str, tuple[Any, Any]] = {}
    # Each array says where it is summed; an ambient mesh would refuse those that live elsewhere.
    with no_mesh():
        for name, array in arrays.items():
            if array.size == 0:
                sums[name] = (0, 0)
            else:
                sums[name] = _host_sums(np.asarray(array)) if _on_host(array) else _device_sums(array)
                if _shares_threads(array):
                    jax.block_until_ready(sums[name])
    return {name: f"{int(first):08x}{int(second):08x}" for name, (first, second) in jax.device_get(sums).items()}


def digest(content: bytes | str) -> str:
    """SHA-256 of bytes or text, in hexadecimal."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its own hash beside its entries, under "hash"."""
    return {**record, "hash": digest(json.dumps(record, sort_keys=True))}


def unseal(text: str) -> dict[str, Any]:
    """The JSON object that `seal` made, without its hash.

    Raises:
      ValueError: it is not JSON, not an object, or its hash does not match.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    found = record.pop("hash", None)
    if found != digest(json.dumps(record, sort_keys=True)):
        raise ValueError("its hash does not match")
    return record


class Leaf(NamedTuple):
    """A leaf as it is stored: `array` is of numpy (a host leaf), of jax, or abstract; keys stand as their data."""

    array: Any
    shape: tuple[int, ...]
    dtype: str
    key: str | None
    host: bool


def leaf_paths(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """The leaves by path (`parameters/dense/kernel`), in order, and the tree's structure."""
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    named: dict[str, Any] = {}
    for path, leaf in flat:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "state"
        while name in named:  # {"a/b": x, "a": {"b": y}}: the order of leaves is fixed, so the names are too
            name += "'"
        named[name] = leaf
    return named, structure


def _is_key(leaf: Any) -> bool:
    """True if a leaf is an array of typed PRNG keys, concrete or abstract."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _host_array(name: str, leaf: Any) -> np.ndarray:
    """A copy of a numpy array, numpy scalar or Python number (the caller may go on writing into its own)."""
    array = np.array(leaf)
    number = jax.dtypes.issubdtype(array.dtype, np.number) or array.dtype == np.bool_
    if not number or array.dtype.itemsize > (16 if array.dtype.kind == "c" else 8):
        raise UsageError(f"{name} can't be saved in a checkpoint: it is a {type(leaf).__name__} ({array.dtype})")
    return array.astype(array.dtype.newbyteorder("="))


def as_stored(name: str, leaf: Any) -> Leaf:
    """The stored form of a concrete or abstract leaf."""
    if _is_key(leaf):
        data = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        array = jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else data
        return Leaf(array, tuple(data.shape), data.dtype.name, str(leaf.dtype), False)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return Leaf(leaf, tuple(leaf.shape), leaf.dtype.name, None, False)
    array = _host_array(name, leaf)
    return Leaf(array, array.shape, array.dtype.name, None, True)


def leaf_sharding(leaf: Any) -> Sharding | None:
    """The sharding of a restored leaf: None is an uncommitted array on the default device, as a fresh `init` gives."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        # What eval_shape gives under jax.set_mesh: the devices are the ambient mesh's.
        mesh = jax.sharding.get_mesh()
        sharding = None if mesh.empty else NamedSharding(mesh, sharding.spec)
    if isinstance(sharding, NamedSharding) and _is_key(leaf):
        # A key's words are an axis of their own, which is never sharded.
        spec = (*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec)), None)
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec), memory_kind=sharding.memory_kind)
    return sharding


def no_mesh() -> Any:
    """A context without an ambient mesh: each array says where it lives, and new ones stay uncommitted."""
    return jax.set_mesh(Mesh(np.empty((), object), ()))


@functools.cache
def _weakly(python: type, placement: Sharding | None) -> Any:
    """A program that gives an array the weak type of a Python number: the same bits, promoted as before."""

    def write(values: jax.Array) -> jax.Array:
        sharding = jax.typeof(values).sharding  # empty, but on a mesh with explicit axes, where a scatter wants it
        zeros = jnp.broadcast_to(jnp.asarray(python(0)), values.shape)
        return zeros.at[...].set(values, out_sharding=sharding if values.ndim and not sharding.mesh.empty else None)

    return jax.jit(write, out_shardings=placement)


@functools.cache
def _key_implementation(dtype: Any) -> Any:
    """`wrap_key_data`'s name of the implementation of a key's dtype: only a traced key has it."""
    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct((), dtype))
    return found[0]


def as_asked(leaf: Any, array: jax.Array | np.ndarray) -> Any:
    """A verified stored array as the leaf that the abstract state asks for: a key, a jax array, or a number."""
    if _is_key(leaf):
        return jax.random.wrap_key_data(array, impl=_key_implementation(leaf.dtype))
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(array) if isinstance(leaf, np.ndarray) else type(leaf)(array.item())
    if isinstance(array, np.ndarray):  # saved as a number of the host, asked for as what a jitted step made of it
        sharding = leaf_sharding(leaf)
        with no_mesh():
            array = jax.device_put(array, sharding, may_alias=False)
    if _is_float(array.dtype) and array.dtype != leaf.dtype:  # an earlier version kept it in fewer bits
        array = array.astype(leaf.dtype)
    kind = {"i": int, "f": float, "c": complex}.get(array.dtype.kind)
    if kind and getattr(leaf, "weak_type", False) and jnp.asarray(kind(0)).dtype == array.dtype:
        # Without it, the first step after a restart would promote, and so compute, otherwise.
        with no_mesh():
            array = _weakly(kind, array.sharding if array.committed else None)(array)
    return array


def describe_leaves(leaf: Leaf, checksum: str) -> dict[str, Any]:
    """A leaf's entry in the record."""
    return {
        "shape": list(leaf.shape),
        "dtype": leaf.dtype,
        "key": leaf.key,
        "host": leaf.host,
        "checksum": checksum,
    }


def _is_float(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _wider(name: str, dtype: str) -> set[str]:
    """Dtypes in which a leaf may be asked for beside its own: moments and averages are float32 since this version."""
    if name.partition("/")[0] not in ("optimizer", "average") or dtype not in ("bfloat16", "float16"):
        return set()
    return {"float32"}


def of_earlier_versions(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, str]:
    """Asked leaf -> the stored one in its place: collections that were evaluated as they are, and are averaged now."""
    alike = {name: f"others/{name.removeprefix('average/')}" for name in ours if name.startswith("average/")}
    return {name: other for name, other in alike.items() if name not in theirs and other in theirs}


def leaf_difference(theirs: Mapping[str, Any], ours: Mapping[str, Leaf]) -> str | None:
    """The first difference between a record's leaves and the requested ones; None if they agree."""
    for name in [name for name in ours if name not in theirs][:1]:
        return f"{name} is here and not there"
    for name in [name for name in theirs if name not in ours][:1]:
        return f"{name} is there and not here"
    for name, leaf in ours.items():
        there = theirs[name]
        if tuple(there["shape"]) != leaf.shape:
            return f"{name} has shape {tuple(there['shape'])} there and {leaf.shape} here"
        # A number of Python or numpy becomes 32 bits wide when it enters a jitted step: then that is what is asked for.
        widths = {there["dtype"]} | _wider(name, there["dtype"])
        if there["host"] and not leaf.host:
            widths.add(jax.dtypes.canonicalize_dtype(there["dtype"]).name)
        if not there["host"] and jax.dtypes.canonicalize_dtype(there["dtype"]).name != there["dtype"]:
            return f"{name} is of {there['dtype']}, which needs jax_enable_x64"
        if (leaf.key or leaf.dtype) not in ({there["key"]} if there["key"] else widths):
            return f"{name} is of {there['key'] or there['dtype']} there and {leaf.key or leaf.dtype} here"
    return None
