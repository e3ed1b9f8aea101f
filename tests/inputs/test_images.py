"""Example inputs of image models: their shapes."""

import jax
import pytest

import arch_jax
from arch_jax.inputs import images, labelled_images


@pytest.mark.parametrize("inputs", [images, labelled_images])
def test_images_are_of_three_colours_unless_it_is_said(inputs):
    module = arch_jax.create("lenet5")
    shapes = lambda found: jax.eval_shape(lambda: found.batch(module, 2, jax.random.key(0)))["images"].shape
    assert shapes(inputs(6)) == (2, 6, 6, 3)
    assert shapes(inputs(6, 1)) == (2, 6, 6, 1)
