"""NCSN++, DDPM++ and EDM's networks: what they are told, how they start, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.vision.unet_blocks import groups_of
from arch_jax.models.diffusion.ncsnpp import NCSNpp
from arch_jax.ops.diffusion.condition import Condition
from arch_jax.ops.diffusion.processes import VPSDE, NoiseLevel, VarianceExploding

SMALL = {"resolution": 4, "width": 8, "widths": (8, 8), "units": 1, "attention": ()}
#: As EDM's: classes and augmentation.
TOLD = NCSNpp(**SMALL, classes=3, null_class=True, augmentation=2, embedding="sinusoidal", input_pyramid="none")
TIMES = jnp.array([3.0, 700.0])
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)), jnp.float32)


@functools.cache
def live():
    """Random variables of `TOLD`, which would start next to 0."""
    shapes = jax.eval_shape(TOLD.init, jax.random.key(0), X, TIMES)
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * draw.normal(size=leaf.shape), leaf.dtype), shapes)


@jax.jit
def applied(variables, condition):
    return TOLD.apply(variables, X, TIMES, condition)


def test_labels_and_augmentation():
    """Nothing is added for the null class; without numbers about the augmentation they are zeros."""
    zeros, numbers = np.zeros((2, 2), np.float32), np.array([[0.0, 0.0], [0.3, -1.0]], np.float32)
    made = lambda label, told=zeros: np.asarray(
        applied(live(), Condition(label=jnp.asarray(label), augmentation=jnp.asarray(told)))
    )
    by_label = [made([label, label]) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.abs(by_label[i] - by_label[j]).max() > 1e-3, (i, j)
    np.testing.assert_array_equal(made([2, 0]), [by_label[2][0], by_label[0][1]])
    assert np.isnan(made([0, 4])[1]).all(), "a label beyond the null class shows"
    np.testing.assert_array_equal(made([0, 4])[0], by_label[0][0])
    np.testing.assert_array_equal(applied(live(), None), by_label[3])
    other = made([1, 1], numbers)
    np.testing.assert_array_equal(other[0], by_label[1][0])
    assert np.abs(other[1] - by_label[1][1]).max() > 1e-3


def test_the_noise_level_that_each_network_is_told():
    """As the house's processes tell the time, and as the networks read it: log sigma, 999 t, c_noise."""
    read = lambda name, told: (module := arch_jax.create(name)).time_scale * told + module.time_shift
    times = np.array([1e-5, 0.3, 1.0])
    process = VarianceExploding()
    sigma = process.coefficients(times, np)[1]
    np.testing.assert_allclose(read("ncsnpp-cifar10", process.conditioning(times)), np.log(sigma), atol=1e-12)
    twice = VarianceExploding(smallest=0.02, largest=100.0)  # of images from -1 to 1: log of half of it
    sigma = twice.coefficients(times, np)[1]
    np.testing.assert_allclose(read("ncsnpp-deep-cifar10", twice.conditioning(times)), np.log(sigma / 2), atol=1e-12)
    np.testing.assert_array_equal(read("ddpmpp-cifar10", VPSDE().conditioning(times)), 999 * times)
    sigma = np.array([0.002, 0.5, 80.0])
    for name in ("edm-cifar10-vp", "edm-cifar10-ve", "edm-ffhq-vp"):
        np.testing.assert_allclose(read(name, NoiseLevel().conditioning(sigma)), np.log(sigma) / 4, atol=1e-12)


@pytest.mark.thorough
def test_it_starts_as_the_authors_code():
    """Uniform with variance 1 / fan, the mean of fan-in and fan-out; 0.1 of it for query, key and value; 1e-10 of it
    at the ends of blocks and network."""
    module = NCSNpp(
        resolution=4,
        width=16,
        widths=(16, 16),
        units=1,
        attention=(0,),
        classes=200,
        augmentation=90,
        fourier_scale=5.0,
    )
    condition = Condition(label=jnp.zeros(2, jnp.int32))
    params = jax.jit(module.init)(jax.random.key(0), X, TIMES, condition)["params"]
    std = lambda *path: np.std(functools.reduce(lambda tree, key: tree[key], path, params)["kernel"])
    for part in ("query", "key", "value"):
        assert std("middle_attention", part) == pytest.approx((0.1 / 16) ** 0.5, rel=0.15)
    assert std("middle_attention", "output") == pytest.approx(1e-5 * 16**-0.5, rel=0.15)
    for unit in ("down_0_unit_0", "halving_1", "doubling_1"):
        assert std(unit, "convolution_1") == pytest.approx((9 * 16) ** -0.5, rel=0.1)
        assert std(unit, "convolution_2") == pytest.approx(1e-5 * (9 * 16) ** -0.5, rel=0.1)
    assert std("input_1") == pytest.approx((9 * 0.5 * (3 + 16)) ** -0.5, rel=0.1)
    assert std("label") == pytest.approx((0.5 * (200 + 32)) ** -0.5, rel=0.05)
    assert std("augmentation") == pytest.approx((0.5 * (90 + 32)) ** -0.5, rel=0.05)
    assert std("outputs") == pytest.approx(1e-5 * (9 * 0.5 * (16 + 3)) ** -0.5, rel=0.1)
    assert 2 < np.std(params["time"]["frequencies"]) < 8
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert not any(np.any(leaf) for leaf in biases)


def test_groups_by_the_number_of_channels():
    assert [groups_of(channels, None) for channels in (128, 384, 256, 12, 14, 3)] == [32, 32, 32, 3, 2, 1]
    assert groups_of(128, 8) == 8


def given(module, x=X, condition=None):
    return jax.eval_shape(module.init_with_output, jax.random.key(0), x, TIMES, condition)[0]


def test_images_of_another_size():
    assert given(TOLD, jnp.zeros((2, 6, 8, 3))).shape == (2, 6, 8, 3)
    with pytest.raises(UsageError, match=r"the images have the shape 5 x 8 x 3, .*multiples of 2 .*; expected such as"):
        given(TOLD, jnp.zeros((2, 5, 8, 3)))
    with pytest.raises(UsageError, match=r"expected such as 4 x 4 x 3$"):
        TOLD.check((4, 4, 1))


def test_conditions_that_are_refused():
    label = jnp.zeros(2, jnp.int32)
    plain = TOLD.clone(classes=None, null_class=False)
    with pytest.raises(UsageError, match="the condition has label, and this NCSNpp has no classes; expected no condi"):
        given(plain, condition=Condition(label=label))
    with pytest.raises(UsageError, match=r"the augmentation has the shape \(2, 3\); expected \(2, 2\), 2 numbers for"):
        given(plain, condition=Condition(augmentation=jnp.zeros((2, 3))))
    with pytest.raises(UsageError, match="the condition has augmentation, which NCSNpp does not use; expected a label"):
        given(TOLD.clone(augmentation=0), condition=Condition(label=label, augmentation=jnp.zeros((2, 2))))
    with pytest.raises(UsageError, match="has 3 classes, no null class and was given no label; expected condition=Con"):
        given(TOLD.clone(null_class=False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 5}, "resolution is 5, which 1 convolutions can't halve; expected"),
        ({"attention": (2,)}, r"attention is \(2,\); expected levels from 0 to 1"),
        ({"width": 0}, "width is 0; expected at least 1"),
        ({"widths": ()}, r"widths is \(\)"),
        ({"fir": (1.0, 2.0, 1.0)}, r"the filter is \(1.0, 2.0, 1.0\); expected an even number of weights"),
        ({"null_class": True}, "null_class is true and classes is none; expected null_class=false, or a num"),
        ({"width": 1, "embedding": "sinusoidal"}, "the embedding of time has 1 features and a shift of 1; expected"),
    ],
)
def test_settings_that_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        given(NCSNpp(**SMALL | changes))
