"""The adversarial pair against the same layers in torch, on the same weights: points, scores, losses, gradients."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")


class Maxout(torch.nn.Module):
    def __init__(self, inputs, outputs, pieces):
        super().__init__()
        self.maps = torch.nn.ModuleList(torch.nn.Linear(inputs, outputs) for _ in range(pieces))

    def forward(self, x):
        return torch.stack([one(x) for one in self.maps]).amax(0)


def networks(width=24, hidden=10, pieces=5):
    layers = []
    for inputs in (2, width, width, width):
        layers += [torch.nn.Linear(inputs, width, bias=False), torch.nn.BatchNorm1d(width), torch.nn.ReLU()]
    generator = torch.nn.Sequential(*layers, torch.nn.Linear(width, 2))
    maxouts = [Maxout(inputs, hidden, pieces) for inputs in (2, hidden, hidden)]
    return generator, torch.nn.Sequential(*maxouts, torch.nn.Linear(hidden, 1))


def dense(layer):
    found = {"kernel": jnp.asarray(layer.weight.detach().numpy().T.copy())}
    return found if layer.bias is None else found | {"bias": jnp.asarray(layer.bias.detach().numpy().copy())}


def maxout(layer):
    """Our kernel has the pieces of a unit side by side."""
    kernels = np.stack([one.weight.detach().numpy().T for one in layer.maps], -1)
    biases = np.stack([one.bias.detach().numpy() for one in layer.maps], -1)
    return {"kernel": jnp.asarray(kernels.reshape(len(kernels), -1)), "bias": jnp.asarray(biases.reshape(-1))}


def variables_of(generator, discriminator):
    hidden = {f"hidden_{i}": dense(generator[3 * i]) for i in range(4)}
    norms = [generator[3 * i + 1] for i in range(4)]
    array = lambda tensor: jnp.asarray(tensor.detach().numpy().copy())
    scales = {f"norm_{i}": {"scale": array(n.weight), "bias": array(n.bias)} for i, n in enumerate(norms)}
    stats = {
        f"norm_{i}": {"mean": array(n.running_mean), "variance": array(n.running_var)} for i, n in enumerate(norms)
    }
    d = {f"hidden_{i}": maxout(discriminator[i]) for i in range(3)} | {"output": dense(discriminator[3])}
    return {"params": {"G": hidden | scales | {"output": dense(generator[12])}, "D": d}, "batch_stats": {"G": stats}}


def test_points_scores_and_losses():
    torch.manual_seed(0)
    generator, discriminator = networks()
    ours = arch_jax.create("gan", **{"generator.hidden": (24,) * 4, "discriminator.hidden": (10,) * 3})
    task = arch_jax.objective("adversarial").with_model(ours)
    variables = variables_of(generator, discriminator)
    real = torch.randn(16, 2)
    key = jax.random.key(3)
    latent = jax.random.normal(jax.random.split(key)[0], (16, 2))  # as the objective draws it
    made = generator.train()(torch.from_numpy(np.array(latent)))
    updated = variables_of(generator, discriminator)["batch_stats"]
    scores = discriminator(torch.cat([real, made]))[:, 0]
    softplus = torch.nn.functional.softplus
    losses = {
        "discriminator": (softplus(-scores[:16]) + softplus(scores[16:])).mean(),
        "generator": softplus(-scores[16:]).mean(),
    }
    np.testing.assert_allclose(
        ours.apply(variables, jnp.asarray(real.numpy()), method="score"), scores[:16].detach().numpy(), atol=1e-5
    )
    batch = {"x": jnp.asarray(real.numpy())}
    for player, owner, part in (("discriminator", 1, "D"), ("generator", 0, "G")):

        def loss(params, player=player):
            (total, weight), (_, updates) = task.loss(player, "main", {**variables, "params": params}, batch, key, 0)
            return total / weight, updates

        (value, updates), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        assert float(value) == pytest.approx(losses[player].item(), rel=1e-5)
        parameters = list((generator, discriminator)[owner].parameters())
        slopes = torch.autograd.grad(losses[player], parameters, retain_graph=True)
        copies = copy.deepcopy(generator), copy.deepcopy(discriminator)
        with torch.no_grad():  # gradients in the place of weights, to be put in our layout by the same function
            for parameter, slope in zip(copies[owner].parameters(), slopes):
                parameter.copy_(slope)
        expected = variables_of(*copies)["params"][part]
        scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
        jax.tree.map(
            lambda a, b, scale=scale: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient[part], expected
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updates["batch_stats"], updated)
