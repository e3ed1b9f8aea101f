"""AlexNet, VGG, DenseNet and the networks for CIFAR against the same networks in torch.

torchvision is not at hand: its definitions are written here again with torch's layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.norms import BatchNorm
from arch_jax.models.cnn.densenet import DenseNet
from arch_jax.models.cnn.googlenet import STAGES, GoogLeNet
from arch_jax.models.cnn.resnet import ResNet
from arch_jax.models.cnn.vgg import VGG, AlexNet

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")
nn = torch.nn


def array(tensor, *axes):
    x = jnp.asarray(tensor.detach().numpy().copy())
    return x.transpose(axes) if axes else x


class Variables:
    """Ours, filled from torch's layers one after another."""

    def __init__(self):
        self.tree = {"params": {}, "batch_stats": {}}

    def put(self, collection, path, leaves):
        *parents, last = path.split("/")
        at = self.tree[collection]
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = leaves

    def convolution(self, path, layer):
        bias = {} if layer.bias is None else {"bias": array(layer.bias)}
        self.put("params", path, {"kernel": array(layer.weight, 2, 3, 1, 0)} | bias)

    def linear(self, path, layer, grid=1):
        """A linear layer on maps of grid x grid pixels, which torch flattens with the channels first."""
        kernel = array(layer.weight).reshape(layer.out_features, -1, grid, grid).transpose(2, 3, 1, 0)
        self.put("params", path, {"kernel": kernel.reshape(-1, layer.out_features), "bias": array(layer.bias)})

    def norm(self, path, layer):
        self.put("params", path, {"scale": array(layer.weight), "bias": array(layer.bias)})
        self.put("batch_stats", path, {"mean": array(layer.running_mean), "variance": array(layer.running_var)})


def away_from_the_start(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            elif tensor.ndim > 1:  # large enough for images to reach the logits through every layer
                deviation = (2 / tensor[0].numel()) ** 0.5
                tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def agree(module, theirs, variables, side):
    """Logits in evaluation, and logits and running statistics of a training step, within 1e-5 of the largest."""
    away_from_the_start(theirs)
    x = np.random.default_rng(0).normal(size=(3, side, side, 3)).astype(np.float32)
    inputs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    before = variables(theirs)

    def close(ours, expected):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())

    with torch.no_grad():
        expected = theirs(inputs).numpy()
        assert np.ptp(expected, axis=0).max() > 0.01 * np.abs(expected).max(), "the images make no difference"
        close(jax.jit(module.apply)(before, x), expected)
        if before["batch_stats"]:
            theirs.double().train()
            for layer in theirs.modules():
                if isinstance(layer, nn.Dropout):
                    layer.eval()
            expected = theirs(inputs.double()).numpy()
    if before["batch_stats"]:
        # In float64: dividing by what few pixels vary by makes much of a rounding of float32, layer after layer.
        with jax.enable_x64(True):
            module = module.clone(dtype="float64", parameter_dtype="float64")
            step = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
            logits, updated = step(jax.tree.map(lambda leaf: leaf.astype("float64"), before), x.astype("float64"))
            close(logits, expected)
            jax.tree.map(close, updated["batch_stats"], jax.tree.map(np.asarray, variables(theirs)["batch_stats"]))


class Pooled(nn.Module):
    def __init__(self, features, grid, classifier):
        super().__init__()
        self.features, self.pool, self.classifier = features, nn.AdaptiveAvgPool2d(grid), classifier

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)).flatten(1))


@pytest.mark.parametrize("side", [75, 224])
def test_alexnet(side):
    # torchvision.models.AlexNet, with fewer channels; at 75 pixels the last maps are of 1 x 1, spread over the grid.
    a, b, c, d, e = widths = (4, 6, 8, 6, 4)
    features = nn.Sequential(
        nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(b, c, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
        nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    classifier = nn.Sequential(
        nn.Dropout(), nn.Linear(e * 36, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)
    )

    def variables(theirs):
        v = Variables()
        for number, place in enumerate((0, 3, 6, 8, 10)):
            v.convolution(f"convolution_{number}/convolution", theirs.features[place])
        for name, place, grid in (("hidden_1", 1, 6), ("hidden_2", 4, 1), ("logits", 6, 1)):
            v.linear(f"classifier/{name}", theirs.classifier[place], grid)
        return v.tree

    agree(AlexNet(classes=5, widths=widths, hidden=16), Pooled(features, 6, classifier), variables, side)


@pytest.mark.parametrize(("norm", "side"), [(False, 32), (True, 47)])
def test_vgg(norm, side):
    # torchvision.models.VGG: configuration (8, M, 12, 12, M, 16, M).
    layers, places, channels = [], [], 3
    for stage, widths in enumerate([(8,), (12, 12), (16,)]):
        for place, width in enumerate(widths):
            places.append((f"stage_{stage}_convolution_{place}", len(layers)))
            layers += [nn.Conv2d(channels, width, 3, padding=1), *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    classifier = nn.Sequential(
        nn.Linear(16 * 9, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 5)
    )

    def variables(theirs):
        v = Variables()
        for name, place in places:
            v.convolution(f"{name}/convolution", theirs.features[place])
            if norm:
                v.norm(f"{name}/norm", theirs.features[place + 1])
        for name, place, grid in (("hidden_1", 0, 3), ("hidden_2", 3, 1), ("logits", 6, 1)):
            v.linear(f"classifier/{name}", theirs.classifier[place], grid)
        return v.tree

    module = VGG(5, (1, 2, 1), (8, 12, 16), hidden=10, dropout=0.0, grid=3, norm=BatchNorm() if norm else None)
    agree(module, Pooled(nn.Sequential(*layers), 3, classifier), variables, side)


class BasicBlock(nn.Module):
    def __init__(self, before, width, stride, residual):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.missing, self.stride, self.residual = width - before, stride, residual

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.residual:
            x = x[:, :, :: self.stride, :: self.stride]
            y = y + nn.functional.pad(x, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return torch.relu(y)


@pytest.mark.parametrize(("residual", "side"), [(True, 32), (False, 17)])
def test_residual_and_plain_networks_for_cifar(residual, side):
    n, widths = 2, (6, 12, 24)
    blocks = [
        BasicBlock(widths[max(s - (p == 0), 0)], widths[s], 2 if s and not p else 1, residual)
        for s in range(3)
        for p in range(n)
    ]
    theirs = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip

    def variables(theirs):
        v = Variables()
        v.convolution("stem/convolution", theirs[0])
        v.norm("stem/norm", theirs[1])
        for number in range(3 * n):
            block, name = theirs[3 + number], f"stage_{number // n}_block_{number % n}"
            for part, convolution, norm in ((1, block.conv1, block.bn1), (2, block.conv2, block.bn2)):
                v.convolution(f"{name}/convolution_{part}/convolution", convolution)
                v.norm(f"{name}/convolution_{part}/norm", norm)
        v.linear("logits", theirs[-1])
        return v.tree

    shortcut = "padding" if residual else "none"
    agree(ResNet(5, (n, n, n), width=6, stem="cifar", shortcut=shortcut), theirs, variables, side)


class Concatenated(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.cat([x, self.layer(x)], 1)


@pytest.mark.parametrize(("form", "bottleneck", "side"), [("imagenet", 4, 64), ("cifar", None, 12)])
def test_densenet(form, bottleneck, side):
    growth, blocks, names = 4, (2, 3), []
    imagenet = form == "imagenet"
    if imagenet:
        layers = [nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    else:
        layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False)]
    pre = lambda before, after, size: [
        nn.BatchNorm2d(before), nn.ReLU(), nn.Conv2d(before, after, size, padding=size // 2, bias=False)
    ]  # fmt: skip
    channels = 8
    for number, count in enumerate(blocks):
        if number:
            names.append((f"transition_{number}", len(layers)))
            layers += [*pre(channels, channels // 2, 1), nn.AvgPool2d(2, 2)]
            channels //= 2
        for place in range(count):
            names.append((f"block_{number}_layer_{place}", len(layers)))
            wide = bottleneck and bottleneck * growth
            inner = pre(channels, wide, 1) + pre(wide, growth, 3) if bottleneck else pre(channels, growth, 3)
            layers.append(Concatenated(nn.Sequential(*inner)))
            channels += growth
    final = len(layers)
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]

    def variables(theirs):
        v = Variables()
        v.convolution("stem", theirs[0])
        if imagenet:
            v.norm("stem_norm", theirs[1])
        for name, place in names:
            inner = theirs[place].layer if isinstance(theirs[place], Concatenated) else theirs[place : place + 3]
            parts = [f"{name}_bottleneck", name] if len(inner) == 6 else [name]
            for number, part in enumerate(parts):
                v.norm(f"{part}/norm", inner[3 * number])
                v.convolution(f"{part}/convolution", inner[3 * number + 2])
        v.norm("final_norm", theirs[final])
        v.linear("logits", theirs[-1])
        return v.tree

    module = DenseNet(5, growth, blocks, stem=8, form=form, bottleneck=bottleneck)
    agree(module, nn.Sequential(*layers), variables, side)


class TorchGoogLeNet(nn.Module):
    """torchvision.models.GoogLeNet, with fewer channels; layers lie under the names that ours have."""

    def __init__(self, width, largest, auxiliary, classes=5, hidden=16):
        super().__init__()
        self.auxiliary = auxiliary
        many = lambda n: max(1, round(n * width))

        def basic(name, old, new, size, stride=1):
            layers = nn.Sequential(nn.Conv2d(old, new, size, stride, size // 2, bias=False), nn.BatchNorm2d(new, 0.001))
            self.add_module(name, nn.Sequential(layers, nn.ReLU()))

        basic("stem", 3, many(64), 7, 2)
        basic("reduce", many(64), many(64), 1)
        basic("convolution", many(64), many(192), 3)
        channels = many(192)
        for stage, modules in STAGES.items():
            for letter, table in zip("abcde", modules):
                one, reduced, three, least, five, pooled = map(many, table)
                at = f"inception_{stage}{letter}"
                basic(f"{at}_one", channels, one, 1)
                basic(f"{at}_three_reduced", channels, reduced, 1)
                basic(f"{at}_three", reduced, three, 3)
                basic(f"{at}_five_reduced", channels, least, 1)
                basic(f"{at}_five", least, five, largest)
                basic(f"{at}_pooled", channels, pooled, 1)
                channels = one + three + five + pooled
                if auxiliary and f"{stage}{letter}" in ("4a", "4d"):
                    head = f"auxiliary_{stage}{letter}"
                    basic(f"{head}_convolution", channels, many(128), 1)
                    self.add_module(f"{head}_hidden", nn.Linear(16 * many(128), hidden))
                    self.add_module(f"{head}_logits", nn.Linear(hidden, classes))
        self.logits = nn.Linear(channels, classes)

    def forward(self, x):
        layer, heads = self.get_submodule, []
        x = nn.functional.max_pool2d(layer("stem")(x), 3, 2, ceil_mode=True)
        x = layer("convolution")(layer("reduce")(x))
        for stage, modules in STAGES.items():
            x = nn.functional.max_pool2d(x, 2 if stage == 5 else 3, 2, ceil_mode=True)
            for letter in "abcde"[: len(modules)]:
                at = f"inception_{stage}{letter}"
                a = layer(f"{at}_one")(x)
                b = layer(f"{at}_three")(layer(f"{at}_three_reduced")(x))
                c = layer(f"{at}_five")(layer(f"{at}_five_reduced")(x))
                d = layer(f"{at}_pooled")(nn.functional.max_pool2d(x, 3, 1, padding=1, ceil_mode=True))
                x = torch.cat([a, b, c, d], 1)
                head = f"auxiliary_{stage}{letter}"
                if hasattr(self, f"{head}_logits"):
                    y = layer(f"{head}_convolution")(nn.functional.adaptive_avg_pool2d(x, 4)).flatten(1)
                    heads.append(layer(f"{head}_logits")(torch.relu(layer(f"{head}_hidden")(y))))
        self.said = tuple(heads)
        return self.logits(x.mean((2, 3)))


@pytest.mark.parametrize(("auxiliary", "largest", "side"), [(False, 3, 64), (True, 5, 75)])
def test_googlenet(auxiliary, largest, side):
    def variables(theirs):
        found = Variables()
        for name, layer in theirs.named_children():
            if isinstance(layer, nn.Linear):
                found.linear(name, layer, 4 if name.endswith("hidden") else 1)
            else:
                found.convolution(f"{name}/convolution", layer[0][0])
                found.norm(f"{name}/norm", layer[0][1])
        return found.tree

    dropouts = {"dropout": 0.0, "auxiliary_dropout": 0.0}
    module = GoogLeNet(5, 0.125, auxiliary=auxiliary, largest=largest, **dropouts, auxiliary_hidden=16)
    theirs = TorchGoogLeNet(0.125, largest, auxiliary)
    agree(module, theirs, variables, side)
    if auxiliary:
        x = jax.random.normal(jax.random.key(1), (2, side, side, 3))
        theirs = theirs.float().eval()
        with torch.no_grad():
            theirs(torch.from_numpy(np.asarray(x).transpose(0, 3, 1, 2).copy()))
        _, kept = jax.jit(lambda v: module.apply(v, x, mutable=["outputs"]))(variables(theirs))
        assert len(kept["outputs"]) == 2
        for logits, expected in zip(jax.tree.leaves(kept["outputs"]), theirs.said, strict=True):
            np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected.numpy()).max())
