"""Hyena against its equations in PyTorch, with PyTorch's own layers and the weights copied in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.mixers.hyena import Hyena

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

WIDTH = 6


class Theirs(torch.nn.Module):
    """Order N of definition 3.1, channel by channel, with a filter network like the one of the authors' code."""

    def __init__(self, order, length, filter_width, features, depth):
        super().__init__()
        nn, self.order, self.length = torch.nn, order, length
        self.into, self.out = nn.Linear(WIDTH, (order + 1) * WIDTH), nn.Linear(WIDTH, WIDTH)
        channels = (order + 1) * WIDTH
        self.short = nn.Conv1d(channels, channels, 3, padding=2, groups=channels)
        widths = [features] + [filter_width] * (depth + 1)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.last = nn.Linear(filter_width, (order - 1) * WIDTH, bias=False)
        self.omega, self.skip = nn.Parameter(torch.ones(filter_width)), nn.Parameter(torch.randn((order - 1) * WIDTH))
        t = torch.linspace(0, 1, length)[:, None]
        bands = (features - 1) // 2
        angle = 2 * torch.pi * torch.arange(length)[:, None] / length * torch.linspace(1e-4, bands - 1, bands)
        self.z, self.t = torch.cat([t, torch.cos(angle), torch.sin(-angle)], dim=1), t

    def filters(self, time):
        z = self.z[:time]
        for layer in self.layers:
            z = torch.sin(self.omega * layer(z))
        log = torch.log(torch.tensor(0.01))
        delta = torch.linspace(float(log / 1.5), float(log / 0.3), (self.order - 1) * WIDTH)
        return self.last(z) * torch.exp(-self.t[:time] * delta.abs())

    def forward(self, u):
        time = u.shape[1]
        mixed = self.short(self.into(u).transpose(1, 2))[..., :time].transpose(1, 2)
        *gates, v = mixed.split(WIDTH, dim=-1)
        h = self.filters(time)
        for i in range(self.order - 1):
            own = slice(i * WIDTH, (i + 1) * WIDTH)
            v = v * gates[self.order - 1 - i]
            spectrum = torch.fft.rfft(v, 2 * time, dim=1) * torch.fft.rfft(h[:, own], 2 * time, dim=0)
            v = torch.fft.irfft(spectrum, 2 * time, dim=1)[:, :time] + v * self.skip[own]
        return self.out(v * gates[0])


def params_of(theirs, read=lambda parameter: parameter.detach().numpy()):
    dense = lambda layer: {"kernel": read(layer.weight).T, "bias": read(layer.bias)}
    network = {"frequency": read(theirs.omega), "output_kernel": read(theirs.last.weight).T}
    for i, layer in enumerate(theirs.layers):
        network |= {f"hidden_{i}_{name}": value for name, value in dense(layer).items()}
    return {
        "input": dense(theirs.into),
        "output": dense(theirs.out),
        "convolution": {"kernel": read(theirs.short.weight)[:, 0].T, "bias": read(theirs.short.bias)},
        "filter": network,
        "skip": read(theirs.skip),
    }


@pytest.mark.parametrize(("order", "features", "depth", "time"), [(2, 3, 2, 24), (3, 5, 1, 71)])
def test_outputs_and_gradients(order, features, depth, time):
    torch.manual_seed(0)
    theirs = Theirs(order, 80, 8, features, depth)
    x, weights = np.random.default_rng(0).normal(size=(2, 2, time, WIDTH)).astype(np.float32)
    theirs_x = torch.from_numpy(x).requires_grad_()
    expected = theirs(theirs_x)
    (expected * torch.from_numpy(weights)).sum().backward()
    ours = Hyena(order=order, length=80, filter_width=8, features=features, filter_depth=depth)
    params = jax.tree.map(jnp.asarray, params_of(theirs))
    own = ours.init(jax.random.key(0), jnp.asarray(x))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, own)

    def loss(params, x):
        y, _ = ours.apply({"params": params}, x)
        return jnp.sum(y * weights), y

    (gradients, ours_x), y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4)
    close(y, expected.detach().numpy())
    close(ours_x, theirs_x.grad.numpy())
    jax.tree.map(close, gradients, params_of(theirs, lambda parameter: parameter.grad.numpy()))
