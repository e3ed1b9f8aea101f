# %% [markdown]
# # 3. Convolutional networks
#
# LeCun et al. (1998, [Proc. IEEE](http://yann.lecun.com/exdb/publis/pdf/lecun-01a.pdf)), LeNet-5; Krizhevsky (2014,
# [1404.5997](https://arxiv.org/abs/1404.5997)), AlexNet in one tower; Simonyan & Zisserman (2015,
# [1409.1556](https://arxiv.org/abs/1409.1556)), VGG; Szegedy et al. (2015,
# [1409.4842](https://arxiv.org/abs/1409.4842)), GoogLeNet; He et al. (2016,
# [1512.03385](https://arxiv.org/abs/1512.03385)), ResNet; Sandler et al. (2018,
# [1801.04381](https://arxiv.org/abs/1801.04381)), MobileNetV2; Tan & Le (2019,
# [1905.11946](https://arxiv.org/abs/1905.11946)), EfficientNet. Run time: <!-- run time -->
#
# <!-- about: convolution, pooling, equivariance, receptive fields, LeNet to EfficientNet, residual connections |
# figure: error and training loss by depth, plain against residual -->
#
# After this lesson you can
#
# - write a residual network in thirty lines, and count its parameters, multiply-adds and receptive field by hand;
# - say to which shifts of an image a convolutional network is indifferent, and to which it is not;
# - say why networks did not simply become deeper before 2015, and test whether a shortcut is the reason that they do.
#
# **A question first.** A network of 8 layers learns 1,438 images of digits by heart in 100 steps. Put 18 more
# layers between its own, with nothing else changed. They could be the identity, so whatever the shallow network
# computes, the deep one can compute as well. Guess its loss *on the training images* after as many steps, where a
# uniform guess has $\ln 10 = 2.3$ nats. If it is higher, name the cause: overfitting, a vanishing gradient, or neither?

# %%
# Installs the library where it is missing (Colab, Kaggle); elsewhere it does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("arch_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "arch-jax"], check=True)

# %%
import contextlib
import dataclasses
import io
import json
import math
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import arch_jax

jax.config.update("jax_default_matmul_precision", "float32")  # as on CPUs, so that equalities hold on accelerators too

# %% [markdown]
# ## The equations
#
# An image is $x \in \mathbb{R}^{H \times W \times C}$. A convolution of stride $s$ puts the same kernel
# $K \in \mathbb{R}^{k \times k \times C/g \times F}$ on every window, after padding with $p$ zeros on each side (it is
# a cross-correlation; the name is historical):
#
# $$y_{hwf} = b_f + \sum_{i,j=0}^{k-1} \sum_{c} x_{sh+i-p,\; sw+j-p,\; c}\, K_{ijcf},
# \qquad H' = \Bigl\lfloor \frac{H + 2p - k}{s} \Bigr\rfloor + 1 .$$
#
# With $g$ groups, the $g$-th part of the features sees the $g$-th part of the channels only; $g = C$ is a *depthwise*
# convolution. Pooling takes the sum, the mean or the maximum of each window, and no window mixes channels.
#
# Batch norm (Ioffe & Szegedy 2015, [1502.03167](https://arxiv.org/abs/1502.03167)) follows each convolution. Mean and
# variance are taken over all images and places of a channel; in evaluation, moving averages stand in for them:
#
# $$\mathrm{BN}(y)_f = \gamma_f\, \frac{y_f - \mu_f}{\sqrt{\sigma_f^2 + \epsilon}} + \beta_f .$$
#
# A residual block adds its input to what its layers make of it (He et al., equation 1), and leaving the sum away gives
# the *plain* block:
#
# $$\text{residual: } y = f\bigl(F(x) + s(x)\bigr), \qquad \text{plain: } y = f\bigl(F(x)\bigr), \qquad
# F = \mathrm{BN} \circ K_2 \circ f \circ \mathrm{BN} \circ K_1, \quad f = \mathrm{ReLU}.$$
#
# $s$ is the identity. Where a block halves the image and doubles the channels, $s$ takes every second pixel and fills
# up with zero channels (the paper's option A), so that shortcuts have no parameters. Option B projects it there
# instead, by a 1 x 1 convolution of the block's stride and a norm, with no $f$ behind it (equation 2).


# %%
def convolve(x, K, stride=1, padding=None, groups=1):
    """x is "batch height width channels", K "size size channels/groups features"."""
    size, p = len(K), len(K) // 2 if padding is None else padding
    x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    starts = [stride * np.arange((side - size) // stride + 1)[:, None] for side in x.shape[1:3]]
    rows, columns = (start + np.arange(size) for start in starts)  # of each window
    windows = x[:, rows][:, :, :, columns]  # "batch new_height size new_width size channels"
    windows = windows.reshape(*windows.shape[:5], groups, -1)
    y = jnp.einsum("bhiwjgc,ijcgf->bhwgf", windows, K.reshape(*K.shape[:3], groups, -1))
    return y.reshape(*y.shape[:3], -1)


def pool(x, size, reduce):
    """`reduce` (jnp.sum, jnp.max ...) over windows that do not overlap."""
    batch, height, width, channels = x.shape
    return reduce(x.reshape(batch, height // size, size, width // size, size, channels), axis=(2, 4))


def layer(p, moving, x, stride=1, epsilon=1e-5):
    """A convolution and its batch norm; the batch's own mean and variance if `moving` is None."""
    y = convolve(x, p["convolution"]["kernel"], stride)
    mean, variance = (
        (moving["norm"]["mean"], moving["norm"]["variance"]) if moving else (y.mean((0, 1, 2)), y.var((0, 1, 2)))
    )
    return p["norm"]["scale"] * (y - mean) / jnp.sqrt(variance + epsilon) + p["norm"]["bias"]


def resnet(p, moving, x, shortcut=True):
    """Logits of a ResNet for small images; each stage but the first begins with a stride of 2."""
    of = lambda name: moving[name] if moving else {"convolution_1": None, "convolution_2": None}
    x = jax.nn.relu(layer(p["stem"], moving and moving["stem"], x))
    for name in sorted(part for part in p if part.startswith("stage")):
        stride = 2 if name.endswith("block_0") and not name.startswith("stage_0") else 1
        y = jax.nn.relu(layer(p[name]["convolution_1"], of(name)["convolution_1"], x, stride))
        y = layer(p[name]["convolution_2"], of(name)["convolution_2"], y)
        if "shortcut" in p[name]:  # option B, equation (2)
            x = layer(p[name]["shortcut"], of(name).get("shortcut"), x, stride)
        else:
            new = (y.shape[3] - x.shape[3]) // 2
            x = jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (new, new)))
        x = jax.nn.relu(y + x) if shortcut else jax.nn.relu(y)
    return x.mean((1, 2)) @ p["logits"]["kernel"] + p["logits"]["bias"]


# %% [markdown]
# The library's network on the same weights, in training and in evaluation. No scale is 1 and no bias 0, which would
# hide a mistake; the variances are small, so that $\epsilon$ counts.


# %%
def drawn(module, x, fresh=False):
    """Random variables: kernels of convolutions as He et al. draw them, all others as at the start or at random."""
    random = np.random.default_rng(0)

    def number(path, leaf):
        if leaf.ndim == 4:
            return random.normal(scale=np.sqrt(2 / math.prod(leaf.shape[:3])), size=leaf.shape)
        if fresh:
            return np.full(leaf.shape, float(path[-1].key in ("scale", "variance")))
        return np.exp(random.normal(loc=-2, size=leaf.shape))

    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(lambda *leaf: jnp.asarray(number(*leaf), jnp.float32), shapes)


model = arch_jax.create("resnet-cifar-20", blocks=(1, 1), width=4)
x = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
for shortcut, name in ((False, "none"), (True, "projection"), (True, "padding")):
    library = model.clone(shortcut=name)
    variables = drawn(library, x)
    evaluated = library.apply(variables, x)
    in_training, updates = library.apply(variables, x, train=True, mutable=["batch_stats"])
    mine = resnet(variables["params"], variables["batch_stats"], x, shortcut)
    np.testing.assert_allclose(mine, evaluated, rtol=3e-5, atol=3e-5 * float(jnp.abs(evaluated).max()))
    mine = resnet(variables["params"], None, x, shortcut)
    np.testing.assert_allclose(mine, in_training, rtol=3e-5, atol=3e-5 * float(jnp.abs(in_training).max()))
    print(f"shortcut {name:10} largest difference {float(jnp.abs(mine - in_training).max()):.1e} in training")

# A tenth of the batch's mean and of its unbiased variance goes into the moving averages.
y = convolve(x, variables["params"]["stem"]["convolution"]["kernel"])
old, new = (tree["batch_stats"]["stem"]["norm"] for tree in (variables, updates))
np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(new["variance"], 0.9 * old["variance"] + 0.1 * y.var((0, 1, 2), ddof=1), rtol=1e-4)

# %% [markdown]
# Groups and a stride in MobileNetV2's depthwise convolution, a convolution without padding in LeNet-5, and both
# poolings. Linen's `capture_intermediates` hands out what each layer gives.


# %%
def outputs(module, variables, x):
    """The output of each layer, nested by name."""
    _, captured = module.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    return captured["intermediates"]


mobile = arch_jax.create("mobilenet-v2", stem=8, head=16, stages=((1, 8, 1, 1), (6, 16, 1, 2)), classes=10)
weights = drawn(mobile, x)


@jax.jit
def around_the_depthwise(x):
    """What goes into the depthwise convolution of the second block, and what comes out of it."""
    block = outputs(mobile, weights, x)["stage_1_block_0"]
    return block["expand"]["__call__"][0], block["depthwise"]["convolution"]["__call__"][0]


wide, narrow = around_the_depthwise(x)
kernel = weights["params"]["stage_1_block_0"]["depthwise"]["convolution"]["kernel"]
print(f"depthwise: {wide.shape} with a kernel {kernel.shape} gives {narrow.shape}")
np.testing.assert_allclose(convolve(wide, kernel, stride=2, groups=wide.shape[3]), narrow, rtol=1e-4, atol=1e-4)

lenet, image = arch_jax.create("lenet5"), jax.random.normal(jax.random.key(3), (2, 32, 32, 1))
weights = drawn(lenet, image)
c1 = jax.jit(lambda image: outputs(lenet, weights, image)["c1"]["__call__"][0])(image)
own = weights["params"]["c1"]
np.testing.assert_allclose(convolve(image, own["kernel"], padding=0) + own["bias"], c1, rtol=1e-4, atol=1e-4)

own = {"scale": jnp.linspace(-1, 1, 6), "bias": jnp.linspace(0, 1, 6)}  # LeNet's pooling: one of each for every map
summed = 1.7159 * jnp.tanh(2 / 3 * (pool(c1, 2, jnp.sum) * own["scale"] + own["bias"]))
np.testing.assert_allclose(summed, lenet.pool.apply({"params": own}, c1), rtol=1e-4, atol=1e-4)
highest = arch_jax.create("lenet5-bn").pool.apply({}, c1)  # the pooling of all later networks
np.testing.assert_array_equal(pool(c1, 2, jnp.max), highest)

# %% [markdown]
# The CIFAR form of the paper with a single block in each of its three stages:

# %%
arch_jax.draw("resnet-cifar-20", blocks=(1, 1, 1))

# %% [markdown]
# ## Equivariance, and what stride breaks
#
# Let $T_d$ shift an image by $d$ pixels. A convolution of stride 1 commutes with it, $K * T_d x = T_d (K * x)$: it is
# *equivariant*. So are the norm and $f$, which treat all places alike, and so is a stack of them. A stride keeps every
# $s$-th place, so that equivariance is left for multiples of $s$ only: $T_{ds} x$ gives features shifted by $d$, and
# any other shift gives other features. Strides multiply from stage to stage.
#
# Two digits stand on a dark ground that is wide enough for their shifts. The network has random weights: it is the
# architecture that is tested. $d$ is the shift, and the features of the shifted image are compared with the features
# shifted by the nearest whole number of places.

# %%
data = arch_jax.Images(source="digits", batch=64)
digit = jnp.kron(jnp.asarray(next(iter(data.load().validation()))["images"][:2]), jnp.ones((1, 2, 2, 1)))
scene = jnp.pad(digit, ((0, 0), (32, 32), (32, 32), (0, 0)))
net = arch_jax.create("resnet-cifar-20", blocks=(1, 1, 1), width=8)
random_weights = drawn(net, scene, fresh=True)


@jax.jit
def stages(image):
    """The features after each stage, of strides 1, 2 and 4."""
    found = outputs(net, random_weights, image)
    return [found[f"stage_{i}_block_0"]["__call__"][0] for i in range(3)]


shifts = np.arange(9)
still = stages(scene)
broken = np.zeros((3, len(shifts)))
for d in shifts:
    for i, (features, moved) in enumerate(zip(still, stages(jnp.roll(scene, d, axis=2)), strict=True)):
        ideal = jnp.roll(features, int(d / 2**i + 0.5), axis=2)
        broken[i, d] = float(jnp.linalg.norm(moved - ideal) / jnp.linalg.norm(ideal))
for i in range(3):
    print(f"stride {2**i}: relative difference", *(f"{value:.1e}" for value in broken[i]))
    kept = shifts % 2**i == 0
    assert (broken[i, kept] < 1e-5).all()
    assert (broken[i, ~kept] > 0.1).all()
assert broken[2, 2] > 0.5

# %% [markdown]
# ## Receptive field
#
# How much of the image does one feature see? A kernel of size $k$ adds $k - 1$ windows, which lie as many pixels apart
# as all strides before it multiply to:
#
# $$r = 1 + \sum_l (k_l - 1) \prod_{m < l} s_m .$$
#
# The gradient of one feature in the image measures it: outside of the receptive field it is zero. Inside, it is not
# uniform. More paths lead to the centre than to the edge, so that the *effective* receptive field is smaller (Luo et
# al. 2016, [1701.04128](https://arxiv.org/abs/1701.04128)).

# %%
noise = jax.random.normal(jax.random.key(6), (32, 48, 48, 1))


@jax.jit
def influence(images):
    """The mean squared gradient of the middle feature of each stage in each pixel, "stages height width"."""

    def middle(images, i):
        features = stages(images)[i]
        return features[:, features.shape[1] // 2, features.shape[2] // 2].sum()

    return jnp.stack([jnp.square(jax.grad(middle)(images, i)).mean((0, 3)) for i in range(3)])


def extent(field):
    """The side of the square outside of which the gradient is exactly zero."""
    seen = np.flatnonzero((np.asarray(field) > 0).any(axis=0))
    return int(seen[-1] - seen[0] + 1)


strides, expected, r, jump = [[1, 1, 1], [2, 1], [2, 1]], [], 1, 1
for stage in strides:
    for stride in stage:
        r, jump = r + 2 * jump, jump * stride
    expected.append(r)
fields = np.asarray(influence(noise))
measured = [extent(field) for field in fields]
rows = np.abs(np.arange(48) - 24) <= expected[2] // 4
central = float(fields[2][np.ix_(rows, rows)].sum() / fields[2].sum())
area = rows.sum() ** 2 / expected[2] ** 2
print(f"receptive fields by the formula {expected}, measured {measured} pixels")
print(f"the central {area:.0%} of the last one's area has {central:.0%} of its squared gradient")
assert measured == expected
assert central > 2 * area

# %%
COLOURS = ("C0", "C1", "C3")
figure, (equivariance, field, profile) = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
for i in range(3):
    (line,) = equivariance.plot(shifts, broken[i], "o-", ms=4, color=COLOURS[i])
    at, side = ((5, "center"), (1, "right"), (6, "center"))[i]
    equivariance.text(at, broken[i, at] + 0.02, f"stride {2**i}", color=line.get_color(), ha=side, va="bottom")
equivariance.set(
    title="Equivariance is left for multiples of the stride", xlabel="shift of the image (pixels)", ylim=(-0.03, 0.75)
)
equivariance.set_ylabel("relative difference of the features")
with np.errstate(divide="ignore"):
    image = field.imshow(np.log10(fields[2] / fields[2].max()), vmin=-4)
for i, side in enumerate(expected):
    corner = 24 - side / 2
    field.add_patch(plt.Rectangle((corner, corner), side, side, fill=False, color=COLOURS[i], lw=1.5))
    arrow = {"arrowstyle": "-", "color": COLOURS[i]}
    place = (8 + 15 * i, 5)
    field.annotate(
        f"stage {i + 1}: {side}", (24 + side / 4, corner), place, color=COLOURS[i], ha="center", arrowprops=arrow
    )
field.set(title="What one feature of stage 3 sees", xlabel="column (pixels)", ylabel="row (pixels)")
figure.colorbar(image, ax=field, shrink=0.8, label="log10 of squared gradient / largest")
for i in range(3):
    shown = fields[i].sum(axis=0) / fields[i].sum()
    profile.plot(np.arange(48) - 24, shown, color=COLOURS[i])
    profile.text(2, 0.95 * shown.max(), f"stage {i + 1}", color=COLOURS[i], va="center")
    profile.axvspan(-expected[i] / 2, expected[i] / 2, ymax=0.02 * (3 - i), color=COLOURS[i], lw=0)
profile.set(title="The edge counts little (bars: $r$)", xlabel="column from the middle (pixels)")
profile.set_ylabel("share of the squared gradient")
plt.show()

# %% [markdown]
# Stage 1 has no stride: it is equivariant to every shift. With stride 4, a shift by 2 pixels changes the features by
# more than half of their norm.
#
# ## From LeNet to EfficientNet
#
# A kernel is used once at each place of its output, so that the multiply-adds of a layer are the size of its kernel
# times the number of places. No weight is needed to count them: `jax.eval_shape` gives the shapes. What was published
# beside it, and the accuracy on ImageNet, is from Howard et al. (2017, [1704.04861](https://arxiv.org/abs/1704.04861),
# tables 8 and 9) for AlexNet, GoogLeNet and VGG-16, from table 4 of its paper for MobileNetV2, and from table 2 of Tan
# & Le for the others.


# %%
def kernels(tree, captured):
    """Each kernel with the shape of its layer's output."""
    for name, part in tree.items():
        if name == "kernel":
            yield part, captured["__call__"][0].shape
        elif isinstance(part, dict):
            yield from kernels(part, captured[name])


def cost(name, pixels, channels=3):
    """Parameters, multiply-adds of one image, and half of the operations that the library counts from the jaxpr."""
    module = arch_jax.create(name)
    image = jax.ShapeDtypeStruct((1, pixels, pixels, channels), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    captured = jax.eval_shape(lambda variables, image: outputs(module, variables, image), shapes, image)
    multiply_adds = sum(kernel.size * math.prod(out[1:-1]) for kernel, out in kernels(shapes["params"], captured))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    return parameters, multiply_adds, arch_jax.count_flops(module.apply, shapes, image).products // 2


PUBLISHED = {  # pixels, multiply-adds in millions, top-1 accuracy in %
    "alexnet": (2014, 224, 720, 57.2),  # the form in one tower; that of 2012 has two
    "vgg-16": (2014, 224, 15_300, 71.5),
    "googlenet": (2014, 224, 1_550, 69.8),
    "resnet-50": (2015, 224, 4_100, 76.0),
    "mobilenet-v2": (2018, 224, 300, 72.0),
    "efficientnet-b0": (2019, 224, 390, 77.1),
    "efficientnet-b4": (2019, 380, 4_200, 82.9),
}
parameters, multiply_adds, _ = cost("lenet5", 32, channels=1)
print(f"{'':16}{'parameters':>12}{'multiply-adds':>16}{'published':>11}   top-1")
print(f"{'lenet5 (1998)':16}{parameters:12,}{multiply_adds / 1e6:14.2f} M{'-':>11}       -")
assert parameters == 60_000  # as the paper counts: 156 + 12 + 1,516 + 32 + 48,120 + 10,164
history, catalogue = {}, {one.name: one.parameters for one in arch_jax.list_models()}
for name, (_, pixels, published, accuracy) in PUBLISHED.items():
    history[name] = parameters, multiply_adds, counted = cost(name, pixels)
    print(f"{name:16}{parameters:12,}{multiply_adds / 1e6:14.0f} M{published:9,} M{accuracy:8.1f} %")
    assert abs(multiply_adds / 1e6 / published - 1) < 0.05
    assert parameters == catalogue[name]
    if not name.startswith(("mobile", "efficient")):  # on CPUs, a depthwise convolution is a sum of shifted images
        assert counted == multiply_adds

# %% [markdown]
# - **LeNet-5**: three convolutions, two poolings; weights are shared over places.
# - **AlexNet**: the same, larger, with ReLU and dropout. Nearly all parameters are in the dense layers, nearly all
#   multiply-adds in the convolutions.
# - **VGG**: 3 x 3 throughout. Two of them see 5 x 5 pixels, with 18 weights instead of 25 and a ReLU between.
# - **GoogLeNet**: several kernel sizes side by side, behind 1 x 1 convolutions that reduce the channels first.
# - **ResNet**: shortcuts, the subject of the next section. The dense layers are gone but for one.
# - **MobileNetV2**: $k^2 C F$ multiply-adds a place become $k^2 C + C F$, by a depthwise and a 1 x 1 convolution; that
#   is MobileNet's idea (Howard et al.). What V2 adds is the *inverted residual*: the shortcut joins the narrow ends of
#   a block, which is six times as wide between them, and the last 1 x 1 convolution has no activation (a *linear
#   bottleneck*), since a ReLU would lose too much of few channels.
# - **EfficientNet**: depth, width and resolution scaled together, from B0 up.

# %%
figure, axis = plt.subplots(figsize=(8, 4.2), layout="constrained")
for name, (year, _, _, accuracy) in PUBLISHED.items():
    parameters, multiply_adds, _ = history[name]
    axis.scatter(multiply_adds / 1e9, accuracy, s=parameters / 2e5, alpha=0.5)
    side = {"vgg-16": ("right", -16)}.get(name, ("left", 12 if parameters < 5e7 else 16))
    label = f"{name} ({year}), {parameters / 1e6:.0f} M"
    axis.annotate(label, (multiply_adds / 1e9, accuracy), (side[1], -3), textcoords="offset points", ha=side[0])
axis.set(xscale="log", xlim=(0.2, 30), ylim=(54, 86), title="Area: parameters")
axis.set(xlabel="multiply-adds of one image (billions, counted)", ylabel="ImageNet top-1 accuracy (%, published)")
plt.show()
cheaper = [history[name][1] / history["vgg-16"][1] for name in ("resnet-50", "efficientnet-b0")]
print(f"multiply-adds beside VGG-16's: ResNet-50 {cheaper[0]:.0%}, EfficientNet-B0 {cheaper[1]:.1%}")
assert cheaper[0] < 0.3
assert cheaper[1] < 0.03
assert history["efficientnet-b0"][1] < 0.1 * history["resnet-50"][1]

# %% [markdown]
# ## Depth, without shortcuts and with them
#
# The networks of the question: plain ones of 8 and of 26 layers, and the residual one of 26, which has exactly as many
# parameters as the plain one of 26. All see the same images in the same order for 100 steps.

# %%
STEPS = 100


def trained(experiment):
    """The outcome of a run, without what it prints, and the training loss of each step."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            outcome = arch_jax.train(experiment, folder)
        rows = [json.loads(line) for line in (outcome.path / "metrics.jsonl").read_text().splitlines()]
    return outcome, np.array([row["loss"] for row in rows if "loss" in row])


def trained_on_digits(model, data, optimizer, steps):
    """The outcome of a short run, and the training loss of each step."""
    experiment = arch_jax.Experiment(
        model=model,
        objective=arch_jax.objective("classify"),
        data=data,
        optimizer=optimizer,
        steps=steps,
        evaluate_every=steps,
        checkpoint_every=steps,
        steps_per_dispatch=20,
        figures=(),
    )
    return trained(experiment)


small = arch_jax.create("resnet-cifar-20", width=8)
descent = arch_jax.Optimizer("sgd", learning_rate=0.1, schedule="cosine", warmup=20, weight_decay=1e-4)
networks = {
    "plain, 8 layers": small.clone(blocks=(1, 1, 1), shortcut="none"),
    "plain, 26 layers": small.clone(blocks=(4, 4, 4), shortcut="none"),
    "residual, 26 layers": small.clone(blocks=(4, 4, 4)),
}
runs = {name: trained_on_digits(model, data, descent, STEPS) for name, model in networks.items()}
last = {name: float(losses[-20:].mean()) for name, (_, losses) in runs.items()}


def gradient_in_first_layer(model):
    """Norm of the gradient in the first layer's weights, freshly initialised, on one batch."""
    batch = next(iter(data.load().validation()))
    variables = jax.jit(model.init)(jax.random.key(0), batch["images"])

    def loss(params):
        logits, _ = model.apply(variables | {"params": params}, batch["images"], train=True, mutable=["batch_stats"])
        return arch_jax.cross_entropy(logits, batch["labels"]).mean()

    return float(jnp.linalg.norm(jax.jit(jax.grad(loss))(variables["params"])["stem"]["convolution"]["kernel"]))


reaching = {name: gradient_in_first_layer(model) for name, model in networks.items()}
print(f"{'':21}training loss   held-out accuracy   gradient in the first layer")
for name, (outcome, _) in runs.items():
    accuracy = outcome.validation["accuracy"]
    print(f"{name:21}{last[name]:8.3f} nats{accuracy:17.1%}{reaching[name]:22.2f}")
assert reaching["plain, 26 layers"] > 5 * reaching["plain, 8 layers"]  # it grows backwards; nothing vanishes
assert reaching["residual, 26 layers"] < 0.5 * reaching["plain, 26 layers"]


def check_depth(shallow, deep):
    """Asserts that the deep network fits the training images as well as the shallow one."""
    assert last[shallow] < 0.1
    assert last[deep] < 0.1 + 2 * last[shallow], f"{deep}: {last[deep]:.2f} nats on the training images"


check_depth("plain, 8 layers", "residual, 26 layers")
try:
    check_depth("plain, 8 layers", "plain, 26 layers")
except AssertionError as failure:
    print(f"without the shortcut it fails: {failure}")
else:
    raise AssertionError("the plain network of 26 layers must not train as well as that of 8")
accuracies = {name: outcome.validation["accuracy"] for name, (outcome, _) in runs.items()}
assert accuracies["residual, 26 layers"] > 0.95 > 0.6 > accuracies["plain, 26 layers"]

# %% [markdown]
# Neither of the two usual answers is right. It is not overfitting: the loss is high on the images that were trained on.
# Nor does the gradient vanish, which batch norm sees to: in the first layer, which it reaches last, it is larger than
# in the shallow network. He et al. call it *degradation*. The deep network contains the shallow one, and gradient
# descent does not find it. The identity is hard to reach by layers that start from random kernels. A residual block
# starts from the identity plus $F$, and what it has to learn is the difference.
#
# That was one seed of a small task. The record of `resnet_vs_plain` has three seeds of 20 and 56 layers, plain and
# residual, on the 60,000 images of Fashion-MNIST for 900 steps.

# %%
record = arch_jax.load_record("resnet_vs_plain")


def recorded(shortcut, blocks):
    """The variant of a kind of block and a number of blocks in each stage."""
    for variant in record.variants:
        changes = {"model.shortcut": "padding", "model.blocks": [3, 3, 3]} | dict(variant.changes)
        if changes["model.shortcut"] == shortcut and list(changes["model.blocks"]) == [blocks] * 3:
            return variant
    raise AssertionError(f"the record has no variant {shortcut} of {blocks} blocks")


cells = {(kind, 6 * n + 2): recorded(kind, n) for kind in ("none", "padding") for n in (3, 9)}
error = {cell: 100 * (1 - np.array(list(one.values("accuracy").values()))) for cell, one in cells.items()}
final = {  # seed -> mean training loss of the last 100 steps
    cell: {s: float(v[t > t[-1] - 100].mean()) for s, (t, v) in one.curve("training loss").items()}
    for cell, one in cells.items()
}
for (kind, layers), errors in error.items():
    losses = ", ".join(f"{loss:.3f}" for loss in final[kind, layers].values())
    errors = ", ".join(f"{e:.1f}" for e in errors)
    print(
        f"{'plain' if kind == 'none' else 'residual':9}{layers} layers: errors {errors} %, training loss {losses} nats"
    )

# The plain network gets worse with depth, for every pair of seeds, in test error and in training loss.
assert error["none", 56].min() > error["none", 20].max()
assert min(final["none", 56].values()) > max(final["none", 20].values())
# The residual network does not; how much it gains is less certain.
assert error["padding", 56].mean() < error["padding", 20].mean()
assert max(final["padding", 56].values()) < min(final["none", 56].values())
assert error["padding", 56].max() < error["none", 56].min() - 3
# Every residual network is better than every plain one, of either depth.
assert max(error["padding", n].max() for n in (20, 56)) < min(error["none", n].min() for n in (20, 56))
gain = record.figures[1].mean
print(f"residual, 56 against 20 layers: {gain.mean:+.2f} points (95 %: {gain.low:+.2f} to {gain.high:+.2f})")
np.testing.assert_allclose(gain.mean, error["padding", 20].mean() - error["padding", 56].mean(), atol=0.01)

# %% [markdown]
# ## The figure

# %%
figure, (by_depth, by_step, live) = plt.subplots(
    1, 3, figsize=(14, 4.4), layout="constrained", width_ratios=(0.8, 1, 1)
)
COLOUR, NAME = {"none": "C3", "padding": "C0"}, {"none": "plain", "padding": "residual"}
for kind in ("none", "padding"):
    means = [error[kind, layers].mean() for layers in (20, 56)]
    by_depth.plot((20, 56), means, color=COLOUR[kind], lw=1.5)
    for layers in (20, 56):
        by_depth.plot([layers] * len(error[kind, layers]), error[kind, layers], "o", color=COLOUR[kind], alpha=0.6)
    by_depth.text(38, np.mean(means) + 0.6, NAME[kind], color=COLOUR[kind], ha="right", va="bottom")
by_depth.set(title="Fashion-MNIST, record: dots are seeds", xlabel="layers", ylabel="error on the test images (%)")
by_depth.set(xticks=(20, 56), xlim=(14, 62), ylim=(0, None))


def smooth(values, n):
    """The mean of each n neighbours."""
    return np.convolve(values, np.ones(n) / n, mode="valid")


for kind, layers in (("none", 20), ("none", 56), ("padding", 56)):
    style = {"color": COLOUR[kind], "ls": "-" if layers == 56 else ":"}
    for steps, losses in cells[kind, layers].curve("training loss").values():
        by_step.plot(smooth(steps, 9), smooth(losses, 9), **style, lw=1, alpha=0.8)
for text, place, colour in (
    ("plain, 56 layers", (330, 1.6), "C3"),
    ("plain, 20", (330, 0.8), "C3"),
    ("residual, 56", (90, 0.35), "C0"),
):
    by_step.text(*place, text, color=colour)
by_step.set(title="The same, three seeds each", xlabel="training step", ylabel="training loss (nats an image)")
by_step.set(ylim=(0, 2.4))
for (name, (_, losses)), (colour, style, at) in zip(
    runs.items(), (("C3", ":", (48, 0.62)), ("C3", "-", (62, 1.95)), ("C0", "-", (5, 0.15))), strict=True
):
    live.plot(smooth(np.arange(1, STEPS + 1), 5), smooth(losses, 5), color=colour, ls=style)
    live.text(*at, name, color=colour)
live.set(title="Digits, trained above", xlabel="training step", ylabel="training loss (nats an image)", ylim=(0, 2.4))
plt.show()

# %% [markdown]
# Left: more layers make the plain network worse, and the residual one not. What the latter gains is small beside that;
# the interval printed above says what three seeds can tell of it. Middle and right: the difference is in the *training*
# loss. The claim would have been refuted by a plain network whose error falls with depth, by a deep plain network with
# a low training loss and a high error, which would be overfitting, or by a deep residual network that does no better
# than the plain one.
#
# A cell of the record takes minutes. The beginning of one is cheap: the plain network of 20 layers with a seed that the
# record does not have, for 200 of its 900 steps. The schedule of its learning rate still ends at 900. What is compared
# is the mean training loss of steps 105, 110, ... 200; the record keeps every fifth step.

# %%
experiment, _ = arch_jax.load_experiment("resnet_vs_plain")
place = Path(experiment.data.source.removeprefix("idx:"))


def early(steps, losses):
    """The mean of steps 105, 110, ... 200."""
    return float(losses[(steps > 100) & (steps <= 200) & (steps % 5 == 0)].mean())


def predicted(variant):
    """Where a further seed's `early` lies with 95 %."""
    found = {seed: {"early": early(*curve)} for seed, curve in variant.curve("training loss").items()}
    return dataclasses.replace(variant, results=found).prediction("early")


interval, residual = predicted(cells["none", 20]), predicted(cells["padding", 20])
print(
    f"predicted from the record: {interval.low:.3f} to {interval.high:.3f} nats; residual networks {residual.mean:.3f}"
)
assert not interval.contains(residual.mean)  # the interval is narrow enough to tell the two apart
if place.is_dir():
    short = {"seed": 17, "steps": 200, "evaluate_every": 200, "checkpoint_every": 200, "optimizer.horizon": 900}
    _, losses = trained(experiment.overridden({**cells["none", 20].changes, **short, "figures": ()}))
    again = early(np.arange(1, 201), losses)
    print(f"seed 17: {again:.3f} nats")
    assert interval.contains(again)
else:
    print(f"Fashion-MNIST is not on this machine ({place}), so that no cell of the record is run again here.")

# %% [markdown]
# ## Convolution against attention
#
# A Vision Transformer (Dosovitskiy et al. 2021, [2010.11929](https://arxiv.org/abs/2010.11929)) cuts the image into
# patches and leaves the rest to attention ([lesson 2](02_transformer.ipynb)). The patches' positions are learned
# vectors: what it learns at one place, it does not know at another. In a convolutional network that is built in; it is
# its *inductive bias*. The test: digits in the middle of 16 x 16 pixels for training, and for validation the held-out
# digits moved to the right. The CNN's stride and the ViT's patches both are 4 pixels: a shift by 4 moves the digit by
# exactly one feature or one patch.

# %%
roomy = arch_jax.Images(source="digits", batch=64, pad=4)
adam = arch_jax.Optimizer("adamw", learning_rate=0.01, final=0.01, warmup=20, weight_decay=0.1)
SIZES = {"resolution": 16, "patch": 4, "depth": 2, "width": 32, "mixer.heads": 4}
rivals = {"CNN": small.clone(blocks=(1, 1, 1)), "ViT": arch_jax.create("vit-tiny-16", classes=10, **SIZES)}
batches = list(roomy.load().validation())
kept = np.concatenate([batch["weights"] for batch in batches]) > 0
unseen, known = (np.concatenate([batch[name] for batch in batches])[kept] for name in ("images", "labels"))
right = {}


def share(module, weights, d):
    """Of the held-out digits, moved by d pixels, the share that is right."""
    return float((jax.jit(module.apply)(weights, jnp.roll(unseen, d, axis=2)).argmax(1) == known).mean())


for name, module in rivals.items():
    weights = trained_on_digits(module, roomy, adam, 200)[0].state.evaluated
    right[name] = [share(module, weights, d) for d in range(5)]
    size = sum(leaf.size for leaf in jax.tree.leaves(weights["params"]))
    print(f"{name} ({size:,} parameters): right", *(f"{one:.1%}" for one in right[name]))

# The positions of the ViT, moved by one patch to the right as the digits are; that of the class token stays.
table = weights["params"]["position_embedding"]
grid = jnp.roll(table[1:].reshape(4, 4, -1), 1, axis=1).reshape(16, -1)
along = {"params": weights["params"] | {"position_embedding": jnp.concatenate([table[:1], grid])}}
together = share(rivals["ViT"], along, 4)
print(f"ViT, the positions moved with the digits: {together:.1%}")
chance = max(np.bincount(known)) / len(known)
assert right["CNN"][0] > 0.9
assert right["CNN"][4] > 0.85
assert right["ViT"][0] > 0.8
assert right["ViT"][4] < right["CNN"][4] - 0.3
assert right["CNN"][2] < right["CNN"][4] - 0.3
assert abs(together - right["ViT"][0]) < 0.01

# %%
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for (name, shares), colour in zip(right.items(), ("C0", "C1"), strict=True):
    axis.plot(range(5), 100 * np.array(shares), "o-", color=colour)
    axis.text(4.08, 100 * shares[4], name, color=colour, va="center")
axis.plot(4, 100 * together, "s", color="C1", mfc="none", ms=8)
axis.text(4.08, 100 * together - 3, "ViT, positions\nmoved as well", color="C1", va="top")
axis.axhline(100 * chance, color="0.6", ls=":")
axis.text(5.05, 100 * chance + 1, "always the most frequent class", color="0.4", va="bottom", ha="right", size=9)
axis.set(xlabel="shift of the held-out digits (pixels)", ylabel="right (%)", xticks=range(5), xlim=(-0.2, 5.1))
axis.set(ylim=(0, 102), title="Trained in the middle, tested elsewhere")
plt.show()

# %% [markdown]
# Moved by a whole patch, the ViT sees the same patches at new positions, and most of what it knew is gone. If its table
# of positions is moved by a patch as well, all of it is back (the square): the positions are the reason. The CNN sees
# the same features at new places, and averages over places. But moved by 1, 2 or 3 pixels, it fails as well: that is
# the first figure of this lesson, in accuracy. Equivariance is built in for multiples of the stride only; for all other
# shifts a network depends on its data (Azulay & Weiss 2019, [1805.12177](https://arxiv.org/abs/1805.12177)), which is
# why images are cropped at random in training.
#
# The bias is worth most where data are few. The experiment `cnn_vs_vit` trains a ResNet and a ViT of equal parameters
# and multiply-adds on 1, 10 and 100 % of Fashion-MNIST (`arch-jax ablate cnn_vs_vit`); its file says what was seen, and
# which half of the paper's claim was not confirmed at that size.
#
# ## What it costs by size
#
# Shortcuts add no parameters and no products, and one addition for each feature that they carry. Counted for an image
# of Fashion-MNIST in the networks of the record:


# %%
def operations(module):
    """Of one image of 28 x 28 pixels, without weights."""
    image = jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
    return arch_jax.count_flops(module.apply, jax.eval_shape(module.init, jax.random.key(0), image), image)


print(f"{'':20}parameters   operations of an image   of them in products")
counted = {}
for (kind, layers), one in cells.items():
    of = operations(experiment.model.clone(shortcut=kind, blocks=((layers - 2) // 6,) * 3))
    counted[kind, layers] = whole = of.products + of.elementwise
    print(f"{NAME[kind]:9}{layers} layers {one.parameters:11,}{whole:20,}{of.products / whole:22.1%}")
for layers in (20, 56):
    assert cells["none", layers].parameters == cells["padding", layers].parameters
    assert cells["none", layers].flops == cells["padding", layers].flops
    assert 1 < counted["padding", layers] / counted["none", layers] < 1.01

# %% [markdown]
# By the image's side the cost grows with its square, as a kernel is used at every place; a ViT's attention would grow
# with the fourth power.

# %%
growth = {}
for name in ("resnet-50", "vit-tiny-16"):
    ratio = []
    for pixels in (224, 448):
        module = arch_jax.create(name, **({"resolution": pixels} if name == "vit-tiny-16" else {}))
        image = jax.ShapeDtypeStruct((1, pixels, pixels, 3), jnp.float32)
        shapes = jax.eval_shape(module.init, jax.random.key(0), image)
        ratio.append(arch_jax.count_flops(module.apply, shapes, image).products)
    print(f"{name}: {ratio[1] / ratio[0]:.2f} times the multiply-adds at twice the side")
    growth[name] = ratio[1] / ratio[0]
assert growth["resnet-50"] < 4.01
assert growth["vit-tiny-16"] > 4.5

# %% [markdown]
# ## Published beside measured
#
# The claims of He et al. at a size that a CPU trains, and LeNet-5 as published on Fashion-MNIST.

# %%
arch_jax.load_record("resnet_vs_plain")

# %%
arch_jax.load_record("lenet_fashion")

# %%
for name in ("resnet_vs_plain", "lenet_fashion"):
    for one in arch_jax.load_record(name).figures:
        assert one.verdict in ("reproduced", "behaviour shown"), f"{name}: {one.verdict}"

# %% [markdown]
# ## When to choose it, and when not
#
# Choose a convolutional network where
#
# - what is looked for may stand anywhere, and data are few: the CNN of the last figure knows a shifted digit that it
#   never saw, at multiples of its stride;
# - images are large: multiply-adds grow with the number of pixels, as counted above, and not with its square;
# - operations are scarce: depthwise forms reach the accuracy of ResNet-50 with a tenth of its multiply-adds (the table
#   of the history).
#
# Choose something else where
#
# - distant places must be compared in an early layer: a receptive field grows by a few pixels a layer, and the
#   effective one is smaller than that (the first figure). Attention compares all places at once;
# - where a thing stands is part of what it means: the ViT of the last figure tells places apart, which the CNN, at
#   multiples of its stride, cannot.
#
# Choose shortcuts wherever depth is wanted: they cost next to nothing (the table), and the plain network of 26 layers
# failed where that of 8 did not. For pixels as outputs, [lesson 12](12_autoencoders.ipynb) has autoencoders.
#
# ## How to read the papers
#
# He et al.:
#
# - **Equation (1)** is the line `jax.nn.relu(y + x)` of `resnet`, and **figure 2** the loop around it; **equation
#   (2)**, shortcuts by projection, is `shortcut="projection"` of the library.
# - **Figure 1 and figure 6, left** (plain networks) are the red lines of the figure above; **figure 6, middle**
#   (residual networks) the blue ones. Figure 1 shows training *and* test error, for the reason that the question asks.
# - **Section 4.1** argues that gradients do not vanish; the column "gradient in the first layer" measures it.
# - **Table 1** counts multiply-adds as `cost` does. ResNet-50 has 3.8 billion there: the stride is in the first 1 x 1
#   convolution of a block (`stride_first=True`).
# - **Table 6** is the ledger's second row above. **Section 4.2** defines the CIFAR networks: $6n + 2$ layers,
#   `blocks=(n, n, n)`.
# - The ablation of shortcuts (table 3, options A, B and C) is `shortcut="padding"` and `"projection"`: A is a little
#   worse than B, both far better than none.
#
# LeCun et al.: figure 2 is LeNet-5; section II.B counts parameters layer by layer, as `cost` does; table I is the
# library's `connections="table"`. Simonyan & Zisserman: section 2.3 is the bullet on VGG. Sandler et al.: table 4. Tan
# & Le: equation 3 and table 2.
#
# ## Exercises
#
# **1. Change a number.** In the CIFAR form, $n$ blocks a stage, at which $n$ does a feature at the *corner* of the last
# stage see all of a 32 x 32 image? Compute $r$ first; then measure it.
#
# <details><summary>Solution</summary>
#
# The stem adds 2 pixels, the first stage $2n \cdot 2$, the second $2 + (2n - 1) \cdot 4$ and the third
# $4 + (2n - 1) \cdot 8$: $r = 28n - 3$. The feature at the corner is centred on pixel 0 and sees $(r - 1)/2$ pixels
# further, which must be 31 at least: $n = 3$, the smallest network of the paper, with 20 layers. The cell measures
# $n = 2$ and $n = 3$.
#
# </details>


# %% tags=["solution"]
def seen_from_the_corner(n):
    """The last column of a 32 x 32 image that the first feature of the last stage depends on."""
    deeper, picture = small.clone(blocks=(n, n, n)), jnp.ones((1, 32, 32, 1))
    shapes = jax.eval_shape(deeper.init, jax.random.key(0), picture)
    weights = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # positive: no ReLU hides a pixel
    name = f"stage_2_block_{n - 1}"
    corner = lambda image: outputs(deeper, weights, image)[name]["__call__"][0][:, 0, 0].sum()
    return int(np.flatnonzero((np.asarray(jax.jit(jax.grad(corner))(picture)) != 0).any(axis=(0, 1, 3)))[-1])


for n in (2, 3):
    r = 28 * n - 3
    column = seen_from_the_corner(n)
    print(f"n = {n}: sees up to column {column} of 31; by the formula {min((r - 1) // 2, 31)}")
    assert column == min((r - 1) // 2, 31)

# %% [markdown]
# **2. Change code.** A stride of 2 drops three of four places without looking at them. Blur the features first, by a
# depthwise convolution with $(1, 2, 1)/4$ in both directions (Zhang 2019,
# [1904.11486](https://arxiv.org/abs/1904.11486)). By how much does a shift of one pixel then change the mean features
# after two layers of convolution, ReLU and stride?
#
# <details><summary>Solution</summary>
#
# Features sampled at every second place hold frequencies that the samples cannot tell from lower ones, and what they
# are mistaken for depends on the shift. $(1, 2, 1)/4$ has a zero at the highest frequency. Before a mean it even makes
# the stride exact: an even place counts once by $\tfrac24$, an odd one twice by $\tfrac14$. After the second ReLU the
# equality is approximate, since the ReLU makes new high frequencies.
#
# </details>


# %% tags=["solution"]
row = jnp.array([1.0, 2.0, 1.0]) / 4
blur = jnp.tile((row[:, None] * row)[:, :, None, None], (1, 1, 1, 8))


def mean_features(x, blurred):
    """The mean over all places after two layers of stride 2, with the network's first two kernels."""
    p = random_weights["params"]
    for part in (p["stem"], p["stage_0_block_0"]["convolution_1"]):
        x = jax.nn.relu(convolve(x, part["convolution"]["kernel"]))
        x = convolve(x, blur, stride=2, groups=8) if blurred else x[:, ::2, ::2]
    return x.mean((1, 2))


change = {}
for blurred in (False, True):
    resting, moved = (mean_features(jnp.roll(scene, d, axis=2), blurred) for d in (0, 1))
    change[blurred] = float(jnp.linalg.norm(moved - resting) / jnp.linalg.norm(resting))
print(f"a shift by one pixel changes the mean features by {change[False]:.1%}, with the blur by {change[True]:.1%}")
assert change[True] < change[False] / 3

# %% [markdown]
# **3. Open.** Is it the shortcut as such that a deep network needs, or only what it does to the first steps? Plain
# networks of thousands of layers have been trained from a special initial state (Xiao et al. 2018,
# [1806.05393](https://arxiv.org/abs/1806.05393)).
#
# <details><summary>Hint</summary>
#
# Give the plain network of 26 layers the initial state of a residual one: kernels with the identity at their centre,
# plus small noise. Train it as above, with three seeds or more. Compare also the correlation of the gradients of two
# neighbouring inputs (Balduzzi et al. 2017, [1702.08591](https://arxiv.org/abs/1702.08591)): in deep plain networks
# gradients are not small, but look like white noise.
#
# </details>
#
# ## Summary
#
# A convolution uses one kernel at all places; so it commutes with shifts, and a stack of stride $s$ with shifts by
# multiples of $s$ only. The receptive field grows linearly with depth, and the part of it that counts more slowly. From
# LeNet to EfficientNet accuracy rose while multiply-adds fell again, by small kernels, 1 x 1 reductions and depthwise
# forms. Deeper plain networks have a higher *training* loss than shallower ones although their gradients do not vanish;
# with shortcuts, which cost next to nothing, depth does no harm.
#
# **Sources**: the papers at the top, [1502.03167](https://arxiv.org/abs/1502.03167),
# [1701.04128](https://arxiv.org/abs/1701.04128), [1704.04861](https://arxiv.org/abs/1704.04861),
# [1805.12177](https://arxiv.org/abs/1805.12177), [1904.11486](https://arxiv.org/abs/1904.11486),
# [2010.11929](https://arxiv.org/abs/2010.11929).
#
# **Next**: [lesson 4](04_recurrent.ipynb), recurrent networks.
