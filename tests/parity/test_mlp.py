"""The multilayer perceptron against the same layers in torch: logits, and the gradient of every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.ops.losses import cross_entropy

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")


@pytest.mark.parametrize("hidden", [(300, 100), ()])
def test_logits_and_gradients(hidden):
    module = arch_jax.create("mlp", hidden=hidden)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(7, 28, 28, 1)).astype(np.float32)
    labels = draw.integers(0, 10, 7)
    ours = jnp.asarray(x)
    params = module.init(jax.random.key(0), ours)["params"]
    layers = []
    for name in [*(f"hidden_{i + 1}" for i in range(len(hidden))), "scores"]:
        params[name]["bias"] += jnp.asarray(0.1 * draw.normal(size=params[name]["bias"].shape), jnp.float32)
        layer = torch.nn.Linear(*params[name]["kernel"].shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.array(params[name]["kernel"]).T))
            layer.bias.copy_(torch.from_numpy(np.array(params[name]["bias"])))
        layers += [(name, layer), (None, torch.nn.Tanh())]
    theirs = torch.nn.Sequential(torch.nn.Flatten(), *(layer for _, layer in layers[:-1]))
    expected = theirs(torch.from_numpy(x))
    torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels)).backward()

    def loss(params):
        logits = module.apply({"params": params}, ours)
        return cross_entropy(logits, jnp.asarray(labels)).mean(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())

    close(logits, expected.detach().numpy())
    for name, layer in layers:
        if name:
            close(gradient[name]["kernel"], layer.weight.grad.numpy().T)
            close(gradient[name]["bias"], layer.bias.grad.numpy())
