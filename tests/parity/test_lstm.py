"""The LSTM layer against torch.nn.LSTM, on the same weights: outputs, last states and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.layers.mixers.rnn.lstm import LSTM

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")


def pair(width, hidden, seed):
    """Both with the same weights, away from their initial values. PyTorch's gates are in our order, in rows."""
    torch.manual_seed(seed)
    theirs = torch.nn.LSTM(width, hidden, batch_first=True)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-0.8, 0.8)
    return theirs, params_of(theirs, lambda tensor: tensor.detach().numpy())


def params_of(theirs, read):
    """PyTorch's weights (or their gradients) as ours."""
    rows = {name: read(parameter) for name, parameter in theirs.named_parameters()}
    biases = np.split(rows["bias_ih_l0"] + rows["bias_hh_l0"], 4)
    return {
        "input": {"kernel": jnp.asarray(rows["weight_ih_l0"].T)},
        "recurrent": {"kernel": jnp.asarray(rows["weight_hh_l0"].T)},
        **{f"bias_{gate}": jnp.asarray(bias) for gate, bias in zip("ifgo", biases)},
    }


@pytest.mark.parametrize(("width", "time"), [(8, 12), (5, 1), (1, 4), (16, 40)])
def test_outputs_and_last_state(width, time):
    theirs, params = pair(width, width, seed=width)
    x = np.random.default_rng(time).normal(size=(3, time, width)).astype(np.float32)
    with torch.no_grad():
        expected, (h, c) = theirs(torch.from_numpy(x))
    ours = LSTM()
    apply = lambda state=None: ours.apply({"params": params}, jnp.asarray(x), None, state)
    y, state = apply(ours.initial_state(3, time, width))
    assert np.abs(expected.numpy()).max() > 0.1
    np.testing.assert_allclose(y, expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(apply()[0], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(state.h, h[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(state.c, c[0].numpy(), atol=1e-5)


def test_gradients():
    width, time = 8, 12
    theirs, params = pair(width, width, seed=0)
    x, weights = np.random.default_rng(1).normal(size=(2, 3, time, width)).astype(np.float32)
    theirs_x = torch.from_numpy(x).requires_grad_()
    (theirs(theirs_x)[0] * torch.from_numpy(weights)).sum().backward()
    # The bias stands twice in PyTorch's layer, and each gets the whole gradient: so half of their sum is ours.
    expected = params_of(theirs, lambda tensor: tensor.grad.numpy())
    expected = {name: leaf / 2 if name.startswith("bias") else leaf for name, leaf in expected.items()}
    loss = lambda params, x: jnp.sum(LSTM().apply({"params": params}, x)[0] * weights)
    ours, ours_x = jax.grad(loss, argnums=(0, 1))(params, jnp.asarray(x))
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)
    jax.tree.map(close, ours, expected)
    close(ours_x, theirs_x.grad.numpy())


def test_fewer_cells_than_the_width():
    """The matrix behind the cells is ours; before it, both are the same."""
    theirs, params = pair(8, 5, seed=3)
    x = np.random.default_rng(2).normal(size=(2, 9, 8)).astype(np.float32)
    v = np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x))[0].numpy() @ v
    y, _ = LSTM(hidden=5).apply({"params": params | {"output": {"kernel": jnp.asarray(v)}}}, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, atol=1e-5)
