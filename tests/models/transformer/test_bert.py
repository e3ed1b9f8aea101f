"""BERT with its layers scanned and apart."""

import functools

import chex
import jax
import numpy as np

from arch_jax import create

TOKENS = np.random.default_rng(0).integers(0, 32, (2, 7)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def applied(module, variables, tokens):
    return module.apply(variables, tokens)


def test_scanned_and_unrolled_are_the_same():
    model = create("bert-base", **{"vocabulary": 32, "depth": 2, "width": 16, "mixer.heads": 4})
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    draw = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)
    flat, apart = model.unrolled(variables)
    assert (model.scan, flat.scan) == (True, False)
    assert set(apart["params"]["stack"]) == {"layer_0", "layer_1"}
    chex.assert_trees_all_equal_shapes(apart, jax.eval_shape(flat.init, jax.random.key(0), TOKENS))
    chex.assert_trees_all_close(applied(flat, apart, TOKENS), applied(model, variables, TOKENS), atol=1e-5)
    assert flat.unrolled(apart) == (flat, apart)
