"""Identities of the convolutional networks, and what each must be able to learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import arch_jax
from arch_jax.models.cnn.convnext import ConvNeXtBlock
from arch_jax.models.cnn.efficientnet import EfficientNet
from arch_jax.models.cnn.resnet import Residual


def drawn(module, x, *arguments):
    """Variables, every one of which says something."""
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(x), *arguments)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.uniform(0.5, 1.5, leaf.shape), leaf.dtype), shapes)


def images(side=6, channels=8):
    return jnp.asarray(np.abs(np.random.default_rng(0).normal(size=(2, side, side, channels))), jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def started(module, x):
    """What a module with its first variables gives, and those."""
    return module.init_with_output(jax.random.key(0), x)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_a_residual_block_with_a_scale_of_zero_is_the_identity(bottleneck):
    """Of what is not negative, because of the last ReLU; a plain block is 0 then."""
    x = images()
    block = Residual(2 if bottleneck else 8, bottleneck=bottleneck, zero_scale=True)
    y, variables = started(block, x)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(jax.jit(block.clone(shortcut="none").apply)(variables, x), 0)


def test_padding_adds_every_second_pixel_and_new_channels_of_zeros():
    x = images()
    block = Residual(12, stride=2, shortcut="padding", zero_scale=True)
    y, _ = started(block, x)
    np.testing.assert_array_equal(y, np.pad(np.asarray(x)[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (2, 2))))


def test_a_convnext_block_with_a_layer_scale_of_zero_is_the_identity():
    block, x = ConvNeXtBlock(layer_scale=0.5), np.asarray(images()) - 1
    variables, apply = drawn(block, x), jax.jit(block.apply)
    assert np.abs(apply(variables, x) - x).max() > 1e-3
    params = variables["params"] | {"scale": jnp.zeros(8)}
    np.testing.assert_array_equal(apply({"params": params}, x), x)


def test_channels_of_a_densenet_grow_by_k_a_layer():
    """k_0 + k l in front of layer l (section 3, "growth rate"); a transition keeps half of them."""
    module = arch_jax.create("densenet-bc-100-12", growth=5, stem=7, blocks=(3, 2))
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    width = lambda name: params[name]["norm"]["scale"].shape[0]
    assert [width(f"block_0_layer_{place}_bottleneck") for place in range(3)] == [7, 12, 17]
    assert width("transition_1") == 22
    assert [width(f"block_1_layer_{place}_bottleneck") for place in range(2)] == [11, 16]
    assert params["final_norm"]["scale"].shape == (21,)


def test_every_layer_of_a_densenet_hands_on_what_it_was_given():
    module = arch_jax.create("densenet-bc-100-12", growth=5, stem=7, blocks=(3,))
    x = images(8, 3)
    variables = drawn(module, x)
    capture = lambda m, _: m.name in ("stem", "final_norm")
    _, seen = jax.jit(functools.partial(module.apply, capture_intermediates=capture))(variables, x)
    stem, last = (np.asarray(seen["intermediates"][name]["__call__"][0]) for name in ("stem", "final_norm"))
    norms = [variables[kind]["final_norm"] for kind in ("params", "batch_stats")]
    norm = jax.tree.map(lambda leaf: np.asarray(leaf)[:7], norms)
    scaled = (stem - norm[1]["mean"]) / np.sqrt(norm[1]["variance"] + module.norm.epsilon)
    np.testing.assert_allclose(last[..., :7], scaled * norm[0]["scale"] + norm[0]["bias"], rtol=1e-5)


def test_compound_scaling_is_computed():
    """Blocks of each stage of the released networks; the text's factors are near theirs (1905.11946, eq. 3)."""
    counts = {size: arch_jax.create(f"efficientnet-b{size}").counts for size in range(8)}
    assert counts[0] == (1, 2, 2, 3, 3, 4, 1)
    assert counts[4] == (2, 4, 4, 6, 6, 8, 2)
    assert counts[7] == (4, 7, 7, 10, 10, 13, 4)
    assert arch_jax.create("efficientnet-lite4").counts == (1, 4, 4, 6, 6, 8, 1)  # both ends keep theirs
    assert EfficientNet(depth_factor=1.2**2).counts == (2, 3, 3, 5, 5, 6, 2)


STEPS = 250
#: Tiny networks that are nevertheless of the architecture; without dropout, which keeps them from learning by heart.
LEARNERS = {
    "alexnet": {"widths": (8, 12, 12, 12, 12), "hidden": 32, "grid": 1, "dropout": 0.0},
    "vgg-11-bn": {"blocks": (1, 1, 1), "widths": (8, 12, 16), "hidden": 32, "grid": 2, "dropout": 0.0},
    "googlenet": {"width": 0.125, "modules": (1, 1, 1), "dropout": 0.0},
    "densenet-121": {"growth": 6, "stem": 8, "blocks": (2, 2)},
}


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", LEARNERS)
def test_32_images_are_learned_by_heart(name):
    images, labels = load_digits(return_X_y=True)
    times = 8 if name == "alexnet" else 4  # which halves the side most often
    x = images[:32].reshape(-1, 8, 8, 1).repeat(times, 1).repeat(times, 2).repeat(3, 3)
    x = jnp.asarray(x / 8 - 1, jnp.float32)
    y = jnp.asarray(labels[:32])
    module = arch_jax.create(name, classes=10, **LEARNERS[name])
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, STEPS))

    @jax.jit
    def learn(key):
        variables = module.init(key, x)
        others = {kind: value for kind, value in variables.items() if kind != "params"}

        def loss(params, others):
            logits, updates = module.apply({"params": params, **others}, x, train=True, mutable=list(others))
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updates

        def step(carry, _):
            params, others, state = carry
            (value, others), slope = jax.value_and_grad(loss, has_aux=True)(params, others)
            change, state = optimizer.update(slope, state)
            return (optax.apply_updates(params, change), others, state), value

        start = (variables["params"], others, optimizer.init(variables["params"]))
        (params, others, _), losses = jax.lax.scan(step, start, length=STEPS)
        return module.apply({"params": params, **others}, x), losses

    logits, losses = learn(jax.random.key(0))
    assert losses[-1] < 0.05 < losses[0]
    np.testing.assert_array_equal(logits.argmax(-1), y)
