"""NCSN++, DDPM++ and EDM's networks against a restatement in PyTorch, from the papers and their authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.models.diffusion.ncsnpp import NCSNpp
from arch_jax.ops.diffusion.condition import Condition

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

SIZES = {"resolution": 8, "width": 8, "widths": (8, 12), "units": 1, "attention": (1,), "fourier_scale": 1.0}
BOX = {"fir": (1.0, 1.0), "input_pyramid": "none", "embedding": "sinusoidal"}
#: name -> settings, height and width of the images
CASES = {
    "NCSN++": ({"time_scale": 0.5, "time_shift": 0.7}, (4, 6)),
    "EDM's DDPM++": (BOX | {"classes": 5, "augmentation": 3, "time_scale": 0.001}, (4, 4)),
    "pyramids of sums": ({"input_pyramid": "skip", "output_pyramid": "skip", "channels": 1}, (4, 4)),
    "a pyramid of features": (
        {"output_pyramid": "residual", "widths": (8, 16), "attention": (0,), "fir": (1.0, 2.0, 2.0, 1.0)},
        (4, 2),
    ),
}


def leaves(tree):
    """Dotted path -> array."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in flat}


def example(name):
    """The module, variables that are nowhere 0, and its arguments, in float64."""
    settings, sides = CASES[name]
    module = NCSNpp(**SIZES | settings, dtype=jnp.float64, parameter_dtype=jnp.float64)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, *sides, module.channels))
    time = np.array([-1000.0, 400.0]) if module.embedding == "sinusoidal" else np.array([-3.0, 2.5])
    label = None if module.classes is None else np.array([4, 1])
    told = draw.normal(size=(2, module.augmentation)) if module.augmentation else None
    condition = None if label is None else Condition(label=label, augmentation=told)
    x, time, condition = jax.tree.map(jnp.asarray, (x, time, condition))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, time, condition)
    fan = lambda leaf: np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 3.0
    return module, jax.tree.map(lambda leaf: draw.normal(size=leaf.shape) / fan(leaf) + 0.01, shapes), (
        x, time, condition
    )  # fmt: skip


class Restated:
    """The network by its formulas, one layer after another, on images "batch channels height width"."""

    def __init__(self, module, parameters):
        self.module, self.p = module, parameters
        self.functional = torch.nn.functional

    def linear(self, x, path):
        return x @ self.p[f"{path}.kernel"] + self.p.get(f"{path}.bias", 0)

    def convolve(self, x, path, padding=None):
        kernel = self.p[f"{path}.kernel"].permute(3, 2, 0, 1)
        padding = kernel.shape[-1] // 2 if padding is None else padding
        return self.functional.conv2d(x, kernel, self.p[f"{path}.bias"], padding=padding)

    def norm(self, x, path):
        groups = min(x.shape[1] // 4, 32)
        return self.functional.group_norm(x, groups, self.p[f"{path}.scale"], self.p[f"{path}.bias"], eps=1e-6)

    def filter(self, channels):
        taps = torch.tensor(self.module.fir, dtype=torch.float64)
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        return kernel.expand(channels, 1, len(taps), len(taps)), len(taps) // 2 - 1

    def down(self, x):
        kernel, reach = self.filter(x.shape[1])
        return self.functional.conv2d(x, kernel, stride=2, padding=reach, groups=x.shape[1])

    def up(self, x, cut=0):
        kernel, reach = self.filter(x.shape[1])
        return self.functional.conv_transpose2d(x, 4 * kernel, stride=2, padding=max(reach - cut, 0), groups=x.shape[1])

    def block(self, x, e, path, resample=lambda x: x):
        y = self.convolve(resample(torch.nn.functional.silu(self.norm(x, f"{path}.norm_1"))), f"{path}.convolution_1")
        y = y + self.linear(self.functional.silu(e), f"{path}.time")[:, :, None, None]
        y = self.convolve(self.functional.silu(self.norm(y, f"{path}.norm_2")), f"{path}.convolution_2")
        x = resample(x)
        if f"{path}.shortcut.kernel" in self.p:
            x = self.convolve(x, f"{path}.shortcut")
        else:
            assert x.shape == y.shape
        return (x + y) / 2**0.5

    def attend(self, x, path):
        y = self.norm(x, f"{path}.norm").flatten(2).transpose(1, 2)
        q, k, v = (self.linear(y, f"{path}.{part}") for part in ("query", "key", "value"))
        y = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
        return (x + self.linear(y, f"{path}.output").transpose(1, 2).unflatten(2, x.shape[2:])) / 2**0.5

    def embedded(self, time, label, told):
        module = self.module
        time = time * module.time_scale + module.time_shift
        if module.embedding == "fourier":
            angles = 2 * np.pi * time[:, None] * self.p["time.frequencies"].detach()
        else:
            half = module.width // 2
            angles = time[:, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / (half - 1))
        e = torch.cat([angles.sin(), angles.cos()], 1)
        if label is not None:
            one_hot = self.functional.one_hot(label, module.classes).double()
            e = e + self.linear(one_hot * module.classes**0.5, "label")
        if told is not None:
            e = e + self.linear(told, "augmentation")
        return self.linear(self.functional.silu(self.linear(e, "time.hidden")), "time.output")

    def __call__(self, x, time, label, told):
        module, silu = self.module, self.functional.silu
        e, image, x = self.embedded(time, label, told), x, self.convolve(x, "stem")
        skips, last = [x], len(module.widths) - 1
        for level in range(last + 1):
            if level:
                x = self.block(x, e, f"halving_{level}", self.down)
                if module.input_pyramid == "skip":
                    image = self.down(image)
                    x = x + self.convolve(image, f"input_{level}")
                elif module.input_pyramid == "residual":  # EDM's order: the convolution, then the filter
                    kernel, reach = self.filter(x.shape[1])
                    bias = self.p[f"input_{level}.bias"]
                    seen = self.convolve(image, f"input_{level}", 1 + reach) - bias[:, None, None]
                    seen = self.functional.conv2d(seen, kernel, bias, stride=2, groups=x.shape[1])
                    x = image = (x + seen) / 2**0.5
                skips.append(x)
            for unit in range(module.units):
                x = self.block(x, e, f"down_{level}_unit_{unit}")
                if level in module.attention:
                    x = self.attend(x, f"down_{level}_attention_{unit}")
                skips.append(x)
        x = self.block(x, e, "middle_unit_0")
        x = self.block(self.attend(x, "middle_attention"), e, "middle_unit_1")
        for level in range(last, -1, -1):
            for unit in range(module.units + 1):
                x = self.block(torch.cat([x, skips.pop()], 1), e, f"up_{level}_unit_{unit}")
            if level in module.attention:
                x = self.attend(x, f"up_{level}_attention")
            if module.output_pyramid == "skip":
                here = self.convolve(silu(self.norm(x, f"norm_{level}")), f"outputs_{level}")
                made = here if level == last else self.up(made) + here
            elif module.output_pyramid == "residual" and level == last:
                made = self.convolve(silu(self.norm(x, f"norm_{level}")), f"outputs_{level}")
            elif module.output_pyramid == "residual":
                reach = self.filter(1)[1]
                grown = self.convolve(self.up(made, cut=1), f"output_{level}", max(1 - reach, 0))
                x = made = (grown + x) / 2**0.5
            if level:
                x = self.block(x, e, f"doubling_{level}", self.up)
        assert not skips
        return made if module.output_pyramid == "skip" else self.convolve(silu(self.norm(x, "norm")), "outputs")


def to_torch(x):
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.thorough] * (i > 1)) for i, name in enumerate(CASES)]
)
def test_it_is_the_authors_network(name):
    """Outputs, and gradients of a squared error by the image and every parameter, in float64."""
    with jax.enable_x64(True):
        module, variables, (x, time, condition) = example(name)

        def loss(variables, x):
            y = module.apply(variables, x, time, condition)
            return jnp.mean(jnp.square(y - 0.3)), y

        (_, y), (gradients, by_image) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables, x)
        assert y.dtype == jnp.float64
        y, by_image, found = np.asarray(y), np.asarray(by_image), leaves(gradients["params"])
    params = {
        path: torch.from_numpy(leaf.copy()).requires_grad_() for path, leaf in leaves(variables["params"]).items()
    }
    label = None if condition is None else torch.from_numpy(np.array(condition.label)).long()
    told = None if condition is None else torch.from_numpy(np.array(condition.augmentation))
    sample = to_torch(x).requires_grad_()
    theirs = Restated(module, params)(sample, torch.from_numpy(np.array(time)), label, told)
    torch.mean((theirs - 0.3) ** 2).backward()
    assert np.abs(y).max() > 0.1
    np.testing.assert_allclose(y, theirs.detach().permute(0, 2, 3, 1), rtol=0, atol=1e-10 * np.abs(y).max())
    slope = sample.grad.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(by_image, slope, rtol=0, atol=1e-10 * np.abs(slope).max())
    largest = max(np.abs(gradient).max() for gradient in found.values())
    for path, parameter in params.items():
        expected = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(found[path], expected, rtol=0, atol=1e-10 * largest, err_msg=path)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("ncsnpp-cifar10", 62_758_915),
        pytest.param("edm-cifar10-vp-conditional", 55_735_299, marks=pytest.mark.thorough),
        pytest.param("edm-cifar10-ve", 56_397_827, marks=pytest.mark.thorough),
    ],
)
def test_the_count_is_that_of_the_authors_code(name, count):
    """Theirs with the settings of their configurations, at full size; EDM's with nine numbers of augmentation."""
    assert arch_jax.models()[name].count() == count
