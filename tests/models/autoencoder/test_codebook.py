"""A codebook's moving averages: when they move, and when not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.models.autoencoder.codebook import Codebook

X = jnp.asarray(np.random.default_rng(0).normal(size=(7, 2)), jnp.float32)


def test_codes_move_in_training_alone():
    module = Codebook(codes=5, width=2, average=0.5)
    variables = jax.jit(module.init, static_argnums=2)(jax.random.key(0), X, True)
    np.testing.assert_array_equal(variables["codebook"]["counts"], 1)  # an initialisation is no step, of training too
    apply = jax.jit(lambda variables, train: module.apply(variables, X, train, mutable=["codebook"]), static_argnums=1)
    _, still = apply(variables, False)
    chex.assert_trees_all_equal(still["codebook"], variables["codebook"])
    _, moved = apply(variables, True)
    assert np.abs(moved["codebook"]["codes"] - variables["codebook"]["codes"]).max() > 0


def test_codes_that_are_parameters_have_no_averages():
    module = Codebook(codes=5, width=2, average=None)
    variables = jax.jit(module.init)(jax.random.key(0), X)
    assert variables.keys() == {"params"}
    apply = jax.jit(lambda variables: module.apply(variables, X, True, mutable=["codebook"]))
    assert not apply(variables)[1]


def test_codes_that_do_not_exist():
    """A code of -1 is not the last one: it has no numbers."""
    book = Codebook(codes=4, width=2)
    variables = book.init(jax.random.key(0), jnp.zeros((1, 2)))
    found = book.apply(variables, jnp.array([-1, 4, 3]), method="look_up")
    np.testing.assert_array_equal(np.isnan(found).all(-1), [True, True, False])
