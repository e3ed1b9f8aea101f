"""The last hidden layer of every kind of classifier is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax import registry
from arch_jax.errors import UsageError
from arch_jax.evaluation.last_hidden import logits_and_features


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly():
    """Each program runs once on three images: nearly all of the time is the compiler's."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


OTHERS = [
    "lenet5-bn",
    "alexnet",
    "convnext-tiny",
    "densenet-121",
    "efficientnet-b0",
    "googlenet",
    "lenet5",
    "mobilenet-v2",
]
OTHERS += ["resnet-18", "vgg-16", "vit-tiny-16"]


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(one, marks=pytest.mark.thorough) for one in OTHERS)])
def test_the_output_layer_makes_the_logits_of_the_features(name):
    entry = registry.models()[name]
    module = entry.tiny()
    batch = entry.inputs.batch(module, 3, jax.random.key(0))
    arguments = entry.arguments(batch)

    @jax.jit
    def run(key):
        variables = module.init(key, *arguments)
        return (
            variables,
            module.apply(variables, *arguments),
            logits_and_features(lambda: module.apply(variables, *arguments)),
        )

    variables, expected, (logits, features) = run(jax.random.key(1))
    np.testing.assert_array_equal(logits, expected)
    assert features.shape[0] == len(logits)
    assert features.ndim == 2
    if name == "lenet5":  # radial basis functions of F6
        from arch_jax.models.cnn.lenet import codes

        np.testing.assert_allclose(logits, -np.square(features[:, None] - codes(10)).sum(-1), rtol=1e-5)
        return
    last = [tree for path, tree in walk(variables["params"]) if path[-1] in ("logits", "scores") and "kernel" in tree]
    assert len(last) == 1
    np.testing.assert_allclose(features @ last[0]["kernel"] + last[0]["bias"], logits, atol=1e-5)


def walk(tree, path=()):
    """(path, subtree) of all that is inside."""
    for name, inner in tree.items():
        if isinstance(inner, dict):
            yield (*path, name), inner
            yield from walk(inner, (*path, name))


def test_logits_that_no_layer_gives():
    module = arch_jax.create("mlp", hidden=(4,))
    variables = module.init(jax.random.key(0), jnp.ones((1, 2, 2, 1)))
    with pytest.raises(UsageError, match="the classifier's logits are no layer's output"):
        logits_and_features(lambda: module.apply(variables, jnp.ones((1, 2, 2, 1))) / 2)
