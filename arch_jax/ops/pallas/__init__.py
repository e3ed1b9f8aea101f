"""Hand-written kernels for TPU (Mosaic) and GPU (Triton), reached only through the calls in `arch_jax.ops`.

A kernel is one more `implementation` of an existing op: it has the op's semantics and is compared with the op's
`*_reference` (in float32 to 1e-5), and where jit cannot partition it, it wraps itself in `jax.shard_map`.
"""
