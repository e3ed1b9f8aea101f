"""Patches of images and back, and masks: permutations undone, shares exact, places alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.ops.convolution.patches import (
    normalised,
    patch_statistics,
    patches,
    random_masking,
    unpatchify,
    visible_count,
)


def test_patches_become_the_image_again():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 9, 2)), jnp.float32)
    rows = patches(x, 3)
    assert rows.shape == (2, 6, 18)
    np.testing.assert_array_equal(rows[1, 4].reshape(3, 3, 2), x[1, 3:6, 3:6])  # second row, second column
    np.testing.assert_array_equal(unpatchify(rows, 3, 6, 9), x)
    with pytest.raises(UsageError, match="6 patches of 3 pixels make no image of 6 x 6 pixels; expected 4"):
        unpatchify(rows, 3, 6, 6)


@pytest.mark.parametrize(("count", "ratio", "visible"), [(196, 0.75, 49), (49, 0.75, 12), (16, 0.4, 9), (256, 0.9, 25)])
def test_as_many_as_the_share_are_masked(count, ratio, visible):
    """Visible ones are rounded down, so that at least the share is masked."""
    noise = np.random.default_rng(0).uniform(size=(5, count)).astype(np.float32)
    kept, restore, mask = map(np.asarray, jax.jit(random_masking, static_argnums=1)(noise, ratio))
    assert visible_count(count, ratio) == visible == kept.shape[1]
    np.testing.assert_array_equal(mask.sum(1), count - visible)
    assert (count - visible - 1) / count < ratio <= (count - visible) / count
    for row in range(5):
        assert sorted(kept[row].tolist()) == np.flatnonzero(~mask[row]).tolist()
        # What was shuffled, visible ones first, is put back in its place.
        shuffled = np.concatenate([kept[row], np.argsort(noise[row], stable=True)[visible:]])
        np.testing.assert_array_equal(shuffled[restore[row]], np.arange(count))


def test_masks_are_uniform_over_places_and_pairs():
    """Each place is masked with probability k / n, and each pair of them with k (k - 1) / (n (n - 1))."""
    draws, count = 20_000, 8
    mask = np.asarray(random_masking(jax.random.uniform(jax.random.key(1), (draws, count)), 0.75).mask, np.float64)
    together = mask.T @ mask / draws
    six, pair = 6 / 8, 6 * 5 / (8 * 7)
    np.testing.assert_allclose(np.diag(together), six, atol=5 * np.sqrt(six * (1 - six) / draws))
    others = together[~np.eye(count, dtype=bool)]
    np.testing.assert_allclose(others, pair, atol=5 * np.sqrt(pair * (1 - pair) / draws))
    assert len({tuple(row) for row in mask[:50]}) > 20  # each image has a mask of its own


def test_normalised_patches():
    rows = jnp.asarray(3 + 2 * np.random.default_rng(0).normal(size=(2, 4, 12)), jnp.float32)
    made = np.asarray(normalised(rows))
    np.testing.assert_allclose(made.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(made.var(-1, ddof=1), 1, rtol=1e-4)
    mean, deviation = patch_statistics(rows)
    np.testing.assert_allclose(made * deviation + mean, rows, atol=1e-5)
    np.testing.assert_array_equal(normalised(jnp.full((1, 1, 9), 0.5)), 0)  # a patch of one colour
