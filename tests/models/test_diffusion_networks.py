"""Denoising networks: how they start, what time and label change, learned variances, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.denoiser import labels_of
from arch_jax.models.diffusion.ddpm_unet import DDPMUNet
from arch_jax.models.diffusion.dit import PUBLISHED, DiT
from arch_jax.models.diffusion.point_denoiser import PointDenoiser
from arch_jax.ops.diffusion.condition import Condition

UNET = {"resolution": 4, "widths": (4, 8), "units": 1, "groups": 2, "attention": (1,)}
SMALL = arch_jax.models()["dit-s-2"].tiny()
#: One of each kind, with three classes and a null class.
MODULES = {
    "unet": DDPMUNet(classes=3, null_class=True, **UNET),
    "dit": SMALL.clone(learned_variance=False),
    "points": PointDenoiser(width=8, depth=2, frequencies=8, classes=3, null_class=True),
}
TIMES = jnp.array([3.0, 700.0])


def example(module):
    shape = (module.features,) if isinstance(module, PointDenoiser) else (4, 4, module.channels)
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *shape)), jnp.float32)


@functools.cache
def live(module):
    """Variables with noise on them: networks start at 0, or next to it."""
    labels = None if module.classes is None else Condition(label=jnp.zeros(2, jnp.int32))
    variables = jax.jit(module.init)(jax.random.key(0), example(module), TIMES, labels)
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf + 0.3 * draw.normal(size=leaf.shape), leaf.dtype), variables)


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def applied(module, variables, x, time, condition=None, **options):
    return module.apply(variables, x, time, condition, **options)


def predicted(module, time=TIMES, label=None, x=None):
    condition = None if label is None else Condition(label=jnp.asarray(label, jnp.int32))
    return np.asarray(applied(module, live(module), example(module) if x is None else x, time, condition))


@pytest.mark.parametrize("name", MODULES)
def test_time_changes_the_prediction(name):
    before, after = predicted(MODULES[name]), predicted(MODULES[name], TIMES + jnp.array([0.0, 9.0]))
    np.testing.assert_array_equal(before[0], after[0])
    assert np.abs(before[1] - after[1]).max() > 1e-3


@pytest.mark.parametrize("name", MODULES)
def test_labels_change_the_prediction_and_none_is_the_null_class(name):
    module = MODULES[name]
    by_label = [predicted(module, label=[label, label]) for label in range(4)]
    for i in range(4):
        for j in range(i):
            assert np.abs(by_label[i] - by_label[j]).max() > 1e-3, (i, j)
    np.testing.assert_array_equal(predicted(module), by_label[3])
    np.testing.assert_array_equal(predicted(module, label=[2, 0]), [by_label[2][0], by_label[0][1]])
    empty = applied(module, live(module), example(module), TIMES, Condition())
    np.testing.assert_array_equal(empty, by_label[3])
    assert np.isnan(predicted(module, label=[0, 4])[1]).all(), "a label beyond the null class shows"


@pytest.mark.parametrize("name", MODULES)
def test_a_learned_variance_doubles_the_channels(name):
    module = MODULES[name].clone(learned_variance=True)
    x = example(module)
    shapes = jax.eval_shape(module.init_with_output, jax.random.key(0), x, TIMES)[0].shape
    assert shapes == (*x.shape[:-1], 2 * x.shape[-1])
    assert predicted(MODULES[name]).shape == x.shape


def test_dit_starts_at_0_and_its_blocks_as_the_identity():
    """Section 3.2: the modulations and the last layer start at 0; embeddings normal, all else Xavier's uniform."""
    module = SMALL
    variables = jax.jit(module.init)(jax.random.key(0), example(module), TIMES)
    np.testing.assert_array_equal(applied(module, variables, example(module), TIMES), 0)
    last = variables["params"]["final_layer"]
    draw = np.random.default_rng(0).normal(size=last["outputs"]["kernel"].shape).astype(np.float32)
    awake = {"final_layer": {**last, "outputs": {**last["outputs"], "kernel": draw}}}
    without = module.clone(depth=1)  # with any number of blocks it is the same network
    one = jax.tree.map(lambda leaf: leaf[:1], variables["params"]["stack"])
    whole = applied(module, {"params": variables["params"] | awake}, example(module), TIMES)
    short = applied(without, {"params": variables["params"] | awake | {"stack": one}}, example(module), TIMES)
    assert np.abs(whole).max() > 0.1
    np.testing.assert_array_equal(whole, short)


@pytest.mark.thorough
def test_dit_starts_as_the_authors_code():
    module = DiT(depth=2, width=48, mixer=arch_jax.create("dit-s-2").mixer, classes=99, frequencies=64)
    x = jnp.zeros((1, 8, 8, 4))
    params = jax.jit(module.init)(jax.random.key(0), x, jnp.zeros(1))["params"]
    block = params["stack"]["layers"]["block_0"]
    normal = {"hidden": params["time"]["hidden"], "output": params["time"]["output"]}
    for leaf in (*(layer["kernel"] for layer in normal.values()), params["label"]["embedding"]):
        assert np.std(leaf) == pytest.approx(0.02, rel=0.1)
    limits = {
        "patch_embedding": (params["patch_embedding"]["kernel"], 16 + 48),
        "query": (block["mixer"]["query"]["kernel"], 48 + 3 * 48),  # one matrix with key and value
        "value": (block["mixer"]["value"]["kernel"], 48 + 3 * 48),
        "output": (block["mixer"]["output"]["kernel"], 48 + 48),
        "up": (block["feed_forward"]["up"]["kernel"], 48 + 192),
        "down": (block["feed_forward"]["down"]["kernel"], 192 + 48),
    }
    for name, (leaf, fans) in limits.items():
        limit = np.sqrt(6 / fans)
        assert 0.98 * limit < np.abs(leaf).max() <= limit, name
        assert np.std(leaf) == pytest.approx(limit / np.sqrt(3), rel=0.05), name


@pytest.mark.thorough
def test_unet_starts_as_the_authors_code():
    """Uniform with variance 1 / fan, the mean of fan-in and fan-out; 1e-10 of it at the ends of blocks and network."""
    module = DDPMUNet(resolution=4, widths=(16,), units=1, groups=4, attention=(0,), classes=2000)
    given = (jnp.zeros((1, 4, 4, 3)), jnp.zeros(1), Condition(label=jnp.zeros(1, jnp.int32)))
    params = jax.jit(module.init)(jax.random.key(0), *given)["params"]
    std = lambda *path: np.std(functools.reduce(lambda tree, key: tree[key], path, params)["kernel"])
    unit = ("down_0_unit_0",)
    assert std(*unit, "convolution_1") == pytest.approx((9 * 16) ** -0.5, rel=0.05)
    assert std(*unit, "time") == pytest.approx((0.5 * (64 + 16)) ** -0.5, rel=0.05)
    assert std("up_0_unit_0", "shortcut") == pytest.approx((0.5 * (32 + 16)) ** -0.5, rel=0.1)
    assert std("time", "hidden") == pytest.approx((0.5 * (16 + 64)) ** -0.5, rel=0.05)
    assert std(*unit, "convolution_2") == pytest.approx(1e-5 * (9 * 16) ** -0.5, rel=0.05)
    assert std("down_0_attention_0", "output") == pytest.approx(1e-5 * 16**-0.5, rel=0.1)
    assert std("outputs") == pytest.approx(1e-5 * (9 * 0.5 * (16 + 3)) ** -0.5, rel=0.1)
    assert np.std(params["label"]["embedding"]) == pytest.approx(1.0, rel=0.02)
    biases = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "bias"]
    assert not any(np.any(leaf) for leaf in biases)


@pytest.mark.thorough
def test_dropout_acts_in_training_alone():
    module = MODULES["unet"].clone(dropout=0.5)
    plain = predicted(module)
    np.testing.assert_array_equal(plain, predicted(module.clone(dropout=0.0)))
    with_key = lambda seed: applied(
        module, live(module), example(module), TIMES, train=True, rngs={"dropout": jax.random.key(seed)}
    )
    assert np.abs(with_key(0) - plain).max() > 1e-2
    assert np.abs(with_key(0) - with_key(1)).max() > 1e-2


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_images_of_another_size(name):
    module = MODULES[name]
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 8, module.channels)), jnp.float32)
    assert predicted(module, x=x).shape == x.shape
    with pytest.raises(
        UsageError, match=r"the images have the shape 5 x 8 x \d, .*multiples of 2 .*; expected such as"
    ):
        jax.eval_shape(module.apply, live(module), x[:, :5], TIMES)
    with pytest.raises(UsageError, match=rf"expected such as 6 x 8 x {module.channels}$"):
        module.check((6, 8, 9))
    with pytest.raises(UsageError, match="the images have the shape 6 x 8, "):
        module.check((6, 8))


def test_points_of_another_size():
    with pytest.raises(UsageError, match="the points have the shape 3, and the model takes 2 coordinates; expected"):
        MODULES["points"].check((3,))
    with pytest.raises(UsageError, match="the points have the shape 3, "):
        jax.eval_shape(MODULES["points"].init, jax.random.key(0), jnp.zeros((2, 3)), TIMES)


@pytest.mark.parametrize("name", MODULES)
def test_conditions_that_are_refused(name):
    """A condition that the network would ignore, or one that it lacks."""
    module = MODULES[name]
    given = lambda module, condition: jax.eval_shape(module.init, jax.random.key(0), example(module), TIMES, condition)
    label = jnp.zeros(2, jnp.int32)
    plain = module.clone(classes=None, null_class=False)
    with pytest.raises(UsageError, match=f"the condition has label, and this {type(module).__name__} has no classes; "):
        given(plain, Condition(label=label))
    assert "label" not in given(plain, Condition())["params"]
    with pytest.raises(UsageError, match=r"the condition has tokens, mask, which \w+ does not use; expected a label"):
        given(module, Condition(label=label, tokens=jnp.zeros((2, 3, 4)), mask=jnp.ones((2, 3), bool)))
    with pytest.raises(
        UsageError, match=r"has 3 classes, no null class and was given no label; expected condition=Con"
    ):
        given(module.clone(null_class=False), None)
    with pytest.raises(UsageError, match=r"the labels have the shape \(3,\); expected \(2,\), one for each example"):
        given(module, Condition(label=jnp.zeros(3, jnp.int32)))
    with pytest.raises(UsageError, match="null_class is true and classes is none; expected null_class=false, or a num"):
        module.clone(classes=None)
    rows = [given(each, Condition(label=label))["params"]["label"]["embedding"].shape[0]
            for each in (module, module.clone(null_class=False))]  # fmt: skip
    assert rows == [4, 3]


def test_the_denoiser_of_points_is_its_formulas():
    """Restated in float64, one layer after another."""
    module = MODULES["points"]
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), live(module)["params"])
    silu = lambda x: x / (1 + np.exp(-x))
    dense = lambda x, layer: x @ layer["kernel"] + layer.get("bias", 0)
    norm = lambda x, layer: (
        layer["scale"] * (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) + layer["bias"]
    )
    angles = np.array([[3.0], [700.0]]) * 10_000.0 ** (-np.arange(4) / 4)
    e = dense(np.concatenate([np.sin(angles), np.cos(angles)], 1), p["time"]["hidden"])
    e = dense(silu(e), p["time"]["output"]) + p["label"]["embedding"][[2, 3]]
    h = dense(np.asarray(example(module)), p["inputs"])
    for i in range(2):
        layer = p[f"layer_{i}"]
        y = dense(norm(h, layer["norm"]), layer["hidden"]) + dense(e, layer["embedding"])
        h = h + dense(silu(y), layer["output"])
    expected = dense(silu(norm(h, p["norm"])), p["outputs"])
    made = predicted(module, label=[2, 3])
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_labels_pass_as_they_are():
    label = jnp.array([2, 3])
    assert labels_of(MODULES["unet"], Condition(label=label), 2) is label


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DDPMUNet(**{**UNET, "groups": 3}), r"widths is \(4, 8\) and groups is 3; expected multiples of the"),
        (lambda: DDPMUNet(**{**UNET, "resolution": 5}), "resolution is 5, which 1 convolutions can't halve; expected"),
        (lambda: DDPMUNet(**{**UNET, "attention": (2,)}), r"attention is \(2,\); expected levels from 0 to 1"),
        (lambda: DDPMUNet(**UNET, head_size=3), "head_size is 3, which does not divide the width 8; .*such as [24]$"),
        (lambda: DDPMUNet(**{**UNET, "units": 0}), "units is 0; expected at least 1"),
        (lambda: SMALL.clone(width=18), "width is 18, and sine-cosine positions need a multiple of 4, such as 16"),
        (lambda: SMALL.clone(patch=3), "resolution is 4 and patch is 3; expected a multiple of the patch, such as 3"),
        (lambda: SMALL.clone(unused_variance=True), "learned_variance and unused_variance are both true; expected one"),
    ],
)
def test_settings_that_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


@pytest.mark.parametrize("name", ["s-2", "xl-8"])
def test_the_published_count_is_ours_and_the_table_of_positions(name):
    entry = arch_jax.models()[f"dit-{name}"]
    module = entry.build()
    places = (module.resolution // module.patch) ** 2
    assert entry.parameters + places * module.width == PUBLISHED[name]
    assert f"{PUBLISHED['s-2']:,} parameters for dit-s-2" in " ".join(entry.departures)


def test_time_is_scaled_before_its_sines():
    for module in (MODULES["dit"], MODULES["points"]):
        scaled = module.clone(time_scale=0.001)
        now = np.asarray(applied(scaled, live(module), example(module), 1000 * TIMES))
        np.testing.assert_allclose(now, predicted(module), atol=1e-3)
        assert np.abs(np.asarray(applied(scaled, live(module), example(module), TIMES)) - now).max() > 1e-2
    assert arch_jax.create("sit-b-2").time_scale == 0.001


def test_a_unet_of_patches_is_one_of_their_pixels_as_channels():
    """The same parameters, on images whose 2 x 2 squares are one place of four times the channels."""
    shared = {"widths": (8, 8), "units": 1, "groups": 2, "attention": (1,), "dropout": 0.0}
    whole = DDPMUNet(resolution=8, channels=3, patch=2, **shared)
    parts = DDPMUNet(resolution=4, channels=12, **shared)
    x = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    time = jnp.array([3.0, 700.0])
    draw = np.random.default_rng(1)
    noise = lambda leaf: jnp.asarray(leaf + 0.3 * draw.normal(size=leaf.shape), leaf.dtype)
    variables = jax.tree.map(noise, whole.init(jax.random.key(1), x, time))
    squares = np.asarray(x).reshape(2, 4, 2, 6, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 4, 6, 12)
    expected = np.asarray(parts.apply(variables, jnp.asarray(squares), time))
    expected = expected.reshape(2, 4, 6, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 8, 12, 3)
    np.testing.assert_allclose(whole.apply(variables, x, time), expected, atol=1e-6)
    with pytest.raises(UsageError, match="multiples of 4 with 3 channels; expected such as 8 x 8 x 3"):
        whole.check((8, 10, 3))
    with pytest.raises(UsageError, match="resolution is 9 and patch is 2"):
        DDPMUNet(resolution=9, patch=2)
