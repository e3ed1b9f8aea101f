"""What meets in a run is checked by name: losses, updated collections, batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.train.checks import check_batch, check_collections, check_pairs

ONE = jnp.ones(())


def test_pairs_of_scalars():
    check_pairs({"loss": (ONE, 1.0)}, "it")
    with pytest.raises(UsageError, match=r"^it gives 'loss' as \(\(3,\), \(\)\); expected a pair of scalars"):
        check_pairs({"loss": (jnp.ones(3), ONE)}, "it")
    with pytest.raises(UsageError, match="it gives 'accuracy' as"):
        check_pairs({"accuracy": (ONE, ONE, ONE)}, "it")
    with pytest.raises(UsageError, match="it gives 'accuracy' as"):
        check_pairs({"accuracy": ONE}, "it")


def test_collections_keep_their_structure():
    before = {"batch_stats": {"mean": jnp.zeros(3)}}
    check_collections(before, {}, "it")
    check_collections(before, {"batch_stats": {"mean": jnp.ones(3)}}, "it")
    with pytest.raises(UsageError, match=r"updates the collection .counts., which `init` did not make; .*batch_stats"):
        check_collections(before, {"counts": {}}, "it")
    for other in ({"mean": jnp.ones(4)}, {"mean": jnp.ones(3, jnp.bfloat16)}, {"mean": jnp.ones(3), "more": ONE}, {}):
        with pytest.raises(
            UsageError, match="it changes the structure, shape or dtype of the collection 'batch_stats'"
        ):
            check_collections(before, {"batch_stats": other}, "it")


def test_batches_are_as_declared():
    shapes = {"x": ((2, 3), "float32")}
    check_batch({"x": np.zeros((2, 3), np.float32)}, shapes)
    with pytest.raises(
        UsageError, match=r"the data's array 'x' is float64 \(2, 3\); its corpus declares float32 \(2, 3\)"
    ):
        check_batch({"x": np.zeros((2, 3))}, shapes)
    with pytest.raises(UsageError, match=r"is float32 \(3, 3\); its corpus declares"):
        check_batch({"x": np.zeros((3, 3), np.float32)}, shapes)
    with pytest.raises(UsageError, match="'x': the batch lacks it"):
        check_batch({}, shapes)
    with pytest.raises(UsageError, match="'y': the corpus does not declare it"):
        check_batch({"x": np.zeros((2, 3), np.float32), "y": 0}, shapes)
