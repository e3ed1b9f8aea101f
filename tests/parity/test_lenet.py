"""LeNet-5 against the same network in torch, on the same weights: logits, gradients, moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import arch_jax
from arch_jax.models.cnn.lenet import codes

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

# Table I of the paper, written down from the page: which of S2's maps each of C3's is joined to.
TABLE = "012 123 234 345 045 015 0123 1234 2345 0345 0145 0125 0134 1245 0235 012345"


class Squash(torch.nn.Module):
    def forward(self, x):
        return 1.7159 * torch.tanh(2 * x / 3)


class Subsampling(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(channels))
        self.bias = torch.nn.Parameter(torch.randn(channels))

    def forward(self, x):
        total = 4 * torch.nn.functional.avg_pool2d(x, 2)
        return Squash()(total * self.scale[:, None, None] + self.bias[:, None, None])


class Published(torch.nn.Module):
    """LeNet-5 of 1998, map by map."""

    def __init__(self):
        super().__init__()
        self.c1 = torch.nn.Conv2d(1, 6, 5)
        self.s2 = Subsampling(6)
        self.c3 = torch.nn.ModuleList(torch.nn.Conv2d(len(maps), 1, 5) for maps in TABLE.split())
        self.s4 = Subsampling(16)
        self.c5 = torch.nn.Conv2d(16, 120, 5)
        self.f6 = torch.nn.Linear(120, 84)
        self.register_buffer("codes", torch.from_numpy(codes(10)))

    def forward(self, x):
        f = Squash()
        x = self.s2(f(self.c1(x)))
        x = torch.cat([f(one(x[:, [int(m) for m in maps]])) for one, maps in zip(self.c3, TABLE.split())], dim=1)
        x = f(self.c5(self.s4(x))).flatten(1)
        x = f(self.f6(x))
        return -((x[:, None] - self.codes) ** 2).sum(-1)


def array(tensor):
    return jnp.asarray(tensor.detach().numpy().copy())


def kernel(tensor):
    return jnp.transpose(array(tensor), (2, 3, 1, 0))


def published_variables(theirs):
    kernels = jnp.concatenate([kernel(one.weight)[..., 0] for one in theirs.c3], axis=-1)
    return {
        "params": {
            "c1": {"kernel": kernel(theirs.c1.weight), "bias": array(theirs.c1.bias)},
            "s2": {"scale": array(theirs.s2.scale), "bias": array(theirs.s2.bias)},
            "c3": {"kernel": kernels, "bias": jnp.concatenate([array(one.bias) for one in theirs.c3])},
            "s4": {"scale": array(theirs.s4.scale), "bias": array(theirs.s4.bias)},
            "c5": {"kernel": kernel(theirs.c5.weight), "bias": array(theirs.c5.bias)},
            "f6": {"kernel": array(theirs.f6.weight).T, "bias": array(theirs.f6.bias)},
        }
    }


def images(seed=0, count=4):
    return np.random.default_rng(seed).uniform(-0.1, 1.175, (count, 32, 32, 1)).astype(np.float32)


def test_the_published_form():
    torch.manual_seed(0)
    theirs, ours, x = Published(), arch_jax.create("lenet5"), jnp.asarray(images())
    assert sum(p.numel() for p in theirs.parameters()) == 60_000
    inputs = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
    logits = theirs(inputs)
    variables = published_variables(theirs)
    # Squared distances over 84 numbers are of order 100: 1e-5 of them.
    assert float(logits.abs().max()) > 50
    np.testing.assert_allclose(ours.apply(variables, x), logits.detach().numpy(), rtol=1e-5, atol=1e-5)

    labels = np.array([3, 1, 4, 1])
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
    with torch.no_grad():  # gradients in the place of weights, to be put in our layout by the same function
        for parameter in theirs.parameters():
            parameter.copy_(parameter.grad)
    expected = published_variables(theirs)["params"]

    def loss(params):
        logits = ours.apply({"params": params}, x)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), gradient, expected)


def modern():
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 5, bias=False), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(6, 16, 5, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 120, 5, bias=False), torch.nn.BatchNorm2d(120), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(120, 84), torch.nn.ReLU(), torch.nn.Linear(84, 10),
    )  # fmt: skip
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
                layer.running_mean.uniform_(-1, 1), layer.running_var.uniform_(0.5, 2)
    return layers


def modern_variables(theirs):
    names = {"c1": 0, "c3": 4, "c5": 8}
    dense = lambda layer: {"kernel": array(layer.weight).T, "bias": array(layer.bias)}
    params = {name: {"kernel": kernel(theirs[i].weight)} for name, i in names.items()}
    norms = {f"{name}_norm": theirs[i + 1] for name, i in names.items()}
    params |= {name: {"scale": array(norm.weight), "bias": array(norm.bias)} for name, norm in norms.items()}
    params |= {"f6": dense(theirs[12]), "output": {"logits": dense(theirs[14])}}
    stats = {n: {"mean": array(norm.running_mean), "variance": array(norm.running_var)} for n, norm in norms.items()}
    return {"params": params, "batch_stats": stats}


def test_batch_norm_in_evaluation_and_after_a_training_step():
    torch.manual_seed(1)
    theirs, ours, x = modern(), arch_jax.create("lenet5-bn"), jnp.asarray(images(1, 8))
    inputs = torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))
    variables = modern_variables(theirs)
    with torch.no_grad():
        expected = theirs.eval()(inputs).numpy()
    np.testing.assert_allclose(ours.apply(variables, x), expected, atol=1e-5)
    logits, updated = ours.apply(variables, x, train=True, mutable=["batch_stats"])
    with torch.no_grad():
        expected = theirs.train()(inputs).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    after = modern_variables(theirs)["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updated["batch_stats"], after)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after, variables["batch_stats"])
    assert min(jax.tree.leaves(moved)) > 1e-2
