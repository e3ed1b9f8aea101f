"""The networks of improved and guided diffusion against a restatement in PyTorch, one formula of the papers a line."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.errors import UsageError
from arch_jax.layers.vision.unet_blocks import ResidualBlock, averaged, upsampled
from arch_jax.models.diffusion.guided_unet import GuidedUNet
from arch_jax.models.diffusion.noisy_classifier import AttentionPool, NoisyClassifier
from arch_jax.ops.diffusion.condition import Condition

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
functional = torch.nn.functional

SMALL = {"resolution": 4, "channels": 2, "widths": (4, 8), "units": 1, "attention": (1,), "groups": 2}
#: name -> module, height and width of the images
NETWORKS = {
    "guided: resampling blocks, heads of 2 channels, classes, a learned variance": (
        GuidedUNet(**SMALL, head_size=2, classes=3, null_class=True, learned_variance=True),
        (4, 6),
    ),
    "improved: convolutions, 4 heads, attention on every level": (
        GuidedUNet(**SMALL | {"attention": (0, 1)}, heads=4, resample_blocks=False),
        (6, 4),
    ),
    "the classifier": (NoisyClassifier(**SMALL, head_size=4, classes=5), (4, 4)),
    "the classifier, time is added, two blocks a level": (
        NoisyClassifier(**SMALL | {"attention": (), "units": 2}, head_size=2, classes=3, scale_shift=False),
        (4, 4),
    ),
}
TIMES = np.array([0.0, 41.0, 999.0])

#: What the papers' code, run in PyTorch, counts.
COUNTS = {
    "adm-classifier-64": 65_438_568,
    "adm-classifier-128": 42_568_040,
    "adm-classifier-256": 54_096_360,
    "adm-imagenet-64": 295_904_454,
    "adm-imagenet-128": 421_529_606,
    "adm-imagenet-256": 553_838_086,
    "adm-imagenet-256-unconditional": 552_814_086,
    "improved-ddpm-cifar10": 52_546_438,
    "improved-ddpm-imagenet-64": 121_063_942,
    "improved-ddpm-imagenet-64-class": 273_049_350,
}


class Restated:
    """The networks by the papers' formulas, from our parameters by dotted path.

    Images are "batch channels rows columns".
    """

    def __init__(self, parameters, module):
        self.p, self.module = parameters, module

    def linear(self, x, path):
        return x @ self.p[f"{path}.kernel"] + self.p[f"{path}.bias"]

    def convolve(self, x, path, stride=1):
        kernel = self.p[f"{path}.kernel"].permute(3, 2, 0, 1)
        return functional.conv2d(x, kernel, self.p[f"{path}.bias"], stride, padding=kernel.shape[2] // 2)

    def norm(self, x, path):
        return functional.group_norm(x, self.module.groups, self.p[f"{path}.scale"], self.p[f"{path}.bias"], 1e-5)

    def block(self, x, e, path, resample=lambda image: image):
        y = self.convolve(resample(functional.silu(self.norm(x, f"{path}.norm_1"))), f"{path}.convolution_1")
        given = self.linear(functional.silu(e), f"{path}.time")[:, :, None, None]
        if self.module.scale_shift:
            scale, shift = given.chunk(2, 1)
            y = (1 + scale) * self.norm(y, f"{path}.norm_2") + shift
        else:
            y = self.norm(y + given, f"{path}.norm_2")
        y = self.convolve(functional.silu(y), f"{path}.convolution_2")
        x = resample(x)
        return (self.convolve(x, f"{path}.shortcut") if f"{path}.shortcut.kernel" in self.p else x) + y

    def heads(self, queries, keys, path):
        """The attention of some places to others, "batch places channels", with as many heads as the module has."""
        channels = keys.shape[-1]
        size = self.module.head_size or channels // self.module.heads
        found = []
        for start in range(0, channels, size):
            part = slice(start, start + size)
            q = self.linear(queries, f"{path}.query")[..., part]
            k, v = (self.linear(keys, f"{path}.{name}")[..., part] for name in ("key", "value"))
            found.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(size), -1) @ v)
        return self.linear(torch.cat(found, -1), f"{path}.output")

    def attend(self, x, path):
        y = self.norm(x, f"{path}.norm").flatten(2).transpose(1, 2)
        return x + self.heads(y, y, path).transpose(1, 2).reshape(x.shape)

    def time(self, time):
        half = self.module.widths[0] // 2
        angles = time[:, None] * 10_000.0 ** (-torch.arange(half, dtype=time.dtype) / half)
        waves = torch.cat([angles.cos(), angles.sin()], 1)
        return self.linear(functional.silu(self.linear(waves, "time.hidden")), "time.output")

    def down(self, x, e):
        module = self.module
        x = self.convolve(x, "encoder.stem")
        skips = [x]
        for level in range(len(module.widths)):
            if level:
                path, half = f"encoder.halving_{level}", functools.partial(functional.avg_pool2d, kernel_size=2)
                x = self.block(x, e, path, half) if module.resample_blocks else self.convolve(x, path, stride=2)
                skips.append(x)
            for unit in range(module.units):
                x = self.block(x, e, f"encoder.level_{level}_unit_{unit}")
                x = self.attend(x, f"encoder.level_{level}_attention_{unit}") if level in module.attention else x
                skips.append(x)
        x = self.attend(self.block(x, e, "encoder.middle.unit_0"), "encoder.middle.attention")
        return self.block(x, e, "encoder.middle.unit_1"), skips

    def unet(self, x, time, labels=None):
        module = self.module
        e = self.time(time)
        e = e if labels is None else e + self.p["label.embedding"][labels]
        x, skips = self.down(x, e)
        double = functools.partial(functional.interpolate, scale_factor=2, mode="nearest")
        for level in reversed(range(len(module.widths))):
            for unit in range(module.units + 1):
                x = self.block(torch.cat([x, skips.pop()], 1), e, f"level_{level}_unit_{unit}")
                x = self.attend(x, f"level_{level}_attention_{unit}") if level in module.attention else x
            if level:
                path = f"doubling_{level}"
                x = self.block(x, e, path, double) if module.resample_blocks else self.convolve(double(x), path)
        return self.convolve(functional.silu(self.norm(x, "norm")), "outputs")

    def classify(self, x, time):
        x, _ = self.down(x, self.time(time))
        x = functional.silu(self.norm(x, "norm")).flatten(2).transpose(1, 2)
        z = torch.cat([x.mean(1, keepdim=True), x], 1) + self.p["pool.position_embedding"]
        return self.heads(z, z, "pool")[:, 0]


def leaves(tree):
    """Dotted path -> array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in flat}


def given(module, sides=(4, 4), rows=3):
    """What the module is called with."""
    x = np.random.default_rng(0).normal(size=(rows, *sides, module.channels))
    x, time = jnp.asarray(x, module.dtype), jnp.asarray(TIMES[:rows], module.dtype)
    if isinstance(module, NoisyClassifier) or module.classes is None:
        return x, time
    return x, time, Condition(label=jnp.arange(rows, dtype=jnp.int32) + 1)  # the null class too


def live(module):
    """Random parameters, none of which is 0."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *given(module))["params"]
    draw = np.random.default_rng(1)
    fan = lambda leaf: np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 2.0
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / fan(leaf), leaf.dtype), shapes)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_gradients_are_those_of_the_formulas(name):
    """Of a squared error in float64, for every parameter and for the image."""
    module, sides = NETWORKS[name]
    with jax.enable_x64(True):
        module = module.clone(dtype=jnp.float64, parameter_dtype=jnp.float64)
        x, *others = given(module, sides)
        params = live(module)

        def loss(params, x):
            y = module.apply({"params": params}, x, *others)
            return jnp.square(y).mean(), y

        (_, ours), found = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)
        found = leaves({"params": found[0], "x": found[1]})
    tensors = {path: torch.from_numpy(leaf.copy()).requires_grad_() for path, leaf in leaves(params).items()}
    image = torch.from_numpy(np.array(x)).requires_grad_()
    restated, channels_first = Restated(tensors, module), image.permute(0, 3, 1, 2)
    if isinstance(module, NoisyClassifier):
        theirs = restated.classify(channels_first, torch.from_numpy(TIMES))
    else:
        labels = [torch.arange(3) + 1] if module.classes else []
        theirs = restated.unet(channels_first, torch.from_numpy(TIMES), *labels).permute(0, 2, 3, 1)
    theirs.square().mean().backward()
    expected = {f"params.{path}": tensor.grad for path, tensor in tensors.items()} | {"x": image.grad}
    np.testing.assert_allclose(ours, theirs.detach(), rtol=0, atol=1e-10 * float(theirs.detach().abs().max()))
    assert found.keys() == expected.keys()
    for path, gradient in expected.items():
        gradient = torch.zeros_like(tensors[path.removeprefix("params.")]) if gradient is None else gradient
        np.testing.assert_allclose(found[path], gradient, rtol=0, atol=1e-10 * float(gradient.abs().max()) + 1e-13)


def test_parameters_are_as_many_as_the_authors():
    """The contract suite counts every name."""
    models = arch_jax.models()
    assert {name: models[name].parameters for name in COUNTS} == COUNTS
    assert models["improved-ddpm-cifar10"].count() == COUNTS["improved-ddpm-cifar10"]


@pytest.fixture(scope="module")
def begun():
    """A network as it starts, wide enough for its draws to be seen, and what it gives."""
    module = GuidedUNet(**SMALL | {"widths": (16,), "attention": (0,), "groups": 4}, classes=3, null_class=True)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), *given(module))
    return y, leaves(variables["params"])


def test_it_starts_at_0(begun):
    """The last layer of the network, and those of all blocks."""
    y, flat = begun
    np.testing.assert_array_equal(y, 0)
    last = {path for path in flat if "convolution_2" in path or ("attention" in path and "output" in path)}
    zeros = {path for path, leaf in flat.items() if not leaf.any()}
    assert zeros == last | {path for path in flat if path.startswith("outputs") or ("norm" in path and "bias" in path)}


def test_it_starts_as_pytorch_does(begun):
    """Kernels and biases uniform on +-1 / sqrt(fan-in), labels normal."""
    flat = begun[1]
    kernels = [path for path, leaf in flat.items() if path.endswith("kernel") and leaf.any()]
    assert len(kernels) > 12
    for path in kernels:
        kernel, bias = flat[path], flat[path.replace("kernel", "bias")]
        limit = np.prod(kernel.shape[:-1]) ** -0.5
        assert 0.9 * limit < np.abs(kernel).max() <= limit, path
        assert 0.5 * limit < np.abs(bias).max() <= limit, path
    assert np.std(flat["label.embedding"]) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize("resample", [averaged, upsampled])
def test_a_block_that_resamples_starts_as_resampling(resample):
    """Of the image on its way past, by means or by nearest neighbours, with or without a change of channels."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 4)), jnp.float32)
    e = jnp.ones((2, 3))
    block = ResidualBlock(4, groups=2, start="fan_in_zeros", scale_shift=True, resample=resample)
    y, _ = jax.jit(block.init_with_output)(jax.random.key(0), x, e)
    if resample is averaged:
        expected = np.asarray(x).reshape(2, 2, 2, 3, 2, 4).mean((2, 4))
    else:
        expected = np.asarray(x).repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(y, expected, atol=1e-6)
    with pytest.raises(UsageError, match="an image of 3 x 6 can't be halved; expected even sides"):
        averaged(x[:, :3])


@pytest.mark.thorough
def test_dropout_acts_in_training_alone():
    module = NoisyClassifier(**SMALL | {"attention": ()}, head_size=4, classes=3, dropout=0.5)
    variables = {"params": live(module)}
    train = jax.jit(functools.partial(module.apply, train=True))
    trained = [train(variables, *given(module), rngs={"dropout": jax.random.key(i)}) for i in (0, 1)]
    plain = jax.jit(module.apply)(variables, *given(module))
    assert min(np.abs(one - plain).max() for one in trained) > 1e-3
    assert np.abs(trained[0] - trained[1]).max() > 1e-3


def test_pooling_knows_places():
    """Other than a mean: images whose rows are exchanged are other ones."""
    pool = AttentionPool(3, head_size=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 2, 4)), jnp.float32)
    params = jax.jit(pool.init)(jax.random.key(0), x)
    assert params["params"]["position_embedding"].shape == (5, 4)
    apply = jax.jit(pool.apply)
    assert np.abs(apply(params, x) - apply(params, x[:, ::-1])).max() > 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedUNet(**SMALL | {"groups": 3}), r"widths is \(4, 8\) and groups is 3; expected multiples of the"),
        (
            lambda: GuidedUNet(**SMALL | {"resolution": 5}),
            "resolution is 5, which 1 convolutions can't halve; expected",
        ),
        (lambda: GuidedUNet(**SMALL | {"attention": (2,)}), r"attention is \(2,\); expected levels from 0 to 1"),
        (
            lambda: GuidedUNet(**SMALL, head_size=3),
            "head_size is 3, which does not divide the width 8; .*such as [24]$",
        ),
        (lambda: GuidedUNet(**SMALL, heads=5), "heads is 5, which does not divide the width 8; .*such as 4$"),
        (lambda: GuidedUNet(**SMALL, heads=0), "heads is 0; expected at least 1"),
        (
            lambda: GuidedUNet(**SMALL, null_class=True),
            "null_class is true and classes is none; expected null_class=fal",
        ),
        (lambda: GuidedUNet(**SMALL).check((4, 5, 2)), "the images have the shape 4 x 5 x 2, .*such as 4 x 4 x 2$"),
        (lambda: GuidedUNet(**SMALL).check((4, 4, 3)), "multiples of 2 with 2 channels; expected such as 4 x 4 x 2$"),
        (lambda: NoisyClassifier(**SMALL, head_size=3), "head_size is 3, which does not divide the width 8; expected"),
        (lambda: NoisyClassifier(**SMALL, head_size=4, classes=0), "classes is 0; expected at least 1"),
        (
            lambda: NoisyClassifier(**SMALL, head_size=4).check((8, 8, 2)),
            "the images have the shape 8 x 8 x 2, and the model takes 4 x 4 x 2 alone; expected those",
        ),
    ],
)
def test_bad_input_is_a_sentence(make, message):
    with pytest.raises(UsageError, match=message):
        make()
