"""The Vision Transformer's identities: patches, permutations, positions at another resolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.layers.mixers.attention import Attention
from arch_jax.models.transformer.vit import ViT, interpolated, patches
from arch_jax.ops.convolution.dense import convolve_reference

SETTINGS = {"classes": 5, "resolution": 16, "patch": 4, "depth": 2, "width": 12, "mixer": Attention(heads=2, bias=True)}


def images(side=16):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, side, side, 3)), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def applied(module, variables, x):
    return module.apply(variables, x)


def noisy(module, x):
    variables = jax.jit(module.init)(jax.random.key(0), x)
    draw = np.random.default_rng(1)
    added = lambda leaf: jnp.asarray(np.asarray(leaf) + 0.3 * draw.normal(size=leaf.shape).astype(np.float32))
    return jax.tree.map(added, variables)


def test_a_convolution_of_patches_is_a_matrix_on_unfolded_ones():
    x = images()
    kernel = np.random.default_rng(2).normal(size=(4, 4, 3, 7)).astype(np.float32)
    expected = jax.jit(lambda x, kernel: convolve_reference(x, kernel, stride=4, padding=0))(x, kernel)
    found = np.asarray(patches(x, 4)) @ kernel.reshape(48, 7)
    np.testing.assert_allclose(found, np.asarray(expected).reshape(2, 16, 7), atol=1e-4)


@pytest.mark.parametrize("pooling", ["token", pytest.param("mean", marks=pytest.mark.thorough)])
def test_without_positions_the_order_of_patches_says_nothing(pooling):
    x = images()
    order = np.random.default_rng(3).permutation(16)
    squares = np.asarray(patches(x, 4))[:, order].reshape(2, 4, 4, 4, 4, 3)
    shuffled = jnp.asarray(squares.transpose(0, 1, 3, 2, 4, 5).reshape(x.shape))
    np.testing.assert_array_equal(patches(shuffled, 4), np.asarray(patches(x, 4))[:, order])
    blind = ViT(**SETTINGS, pooling=pooling, position=False)
    variables = noisy(blind, x)
    np.testing.assert_allclose(applied(blind, variables, x), applied(blind, variables, shuffled), atol=1e-5)
    seeing = ViT(**SETTINGS, pooling=pooling)
    variables = noisy(seeing, x)
    assert np.abs(np.asarray(applied(seeing, variables, x)) - applied(seeing, variables, shuffled)).max() > 1e-2


def test_attention_is_not_causal_whatever_the_mixer_says():
    x = images()
    module = ViT(**SETTINGS | {"mixer": Attention(heads=2, bias=True, causal=True)})
    variables = noisy(module, x)
    changed = np.array(x)
    changed[:, -1, -1] += 1  # the last patch, which the class token in front must see
    assert np.abs(np.asarray(applied(module, variables, x)) - applied(module, variables, changed)).max() > 1e-3


def test_positions_at_another_resolution():
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(4.0), indexing="ij")
    table = jnp.asarray(np.stack([rows, columns], -1).reshape(16, 2), jnp.float32)
    np.testing.assert_array_equal(interpolated(table, 4, 4, 4), table)
    # A plane stays a plane, with corners on corners.
    larger = np.asarray(jax.jit(interpolated, static_argnums=(1, 2, 3))(table, 4, 7, 10)).reshape(7, 10, 2)
    np.testing.assert_allclose(larger[:, 0, 0], np.linspace(0, 3, 7), atol=1e-6)
    np.testing.assert_allclose(larger[2, :, 1], np.linspace(0, 3, 10), atol=1e-6)
    x = images(24)
    module = ViT(**SETTINGS)
    variables = noisy(module, images())
    assert jax.eval_shape(module.apply, variables, x).shape == (2, 5)


def test_what_is_refused():
    with pytest.raises(
        UsageError, match="resolution is 18 and patch is 4; expected a multiple of the patch, such as 16"
    ):
        ViT(**SETTINGS | {"resolution": 18})
    with pytest.raises(UsageError, match="18 x 16 pixels, which patches of 4 don't divide"):
        ViT(**SETTINGS).check((18, 16, 3))
