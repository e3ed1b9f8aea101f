"""torch.nn.RNN, GRU and LSTM against our mixers on the same weights: stacked, in two directions, with gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.errors import UsageError
from arch_jax.interop.torch_nn import from_torch, to_torch
from arch_jax.layers.mixers.rnn.bidirectional import Bidirectional
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

WIDTH, TIME = 6, 11
CASES = {
    "rnn": (torch.nn.RNN, RNN(), {}),
    "rnn, relu": (torch.nn.RNN, RNN(activation="relu"), {"nonlinearity": "relu"}),
    "gru": (torch.nn.GRU, GRU(), {}),
    "gru, without biases": (torch.nn.GRU, GRU(), {"bias": False}),
    "lstm": (torch.nn.LSTM, LSTM(), {}),
}


def theirs(case, **settings):
    cls, mixer, more = CASES[case]
    torch.manual_seed(0)
    layer = cls(WIDTH, WIDTH, batch_first=True, **more, **settings)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.7, 0.7)
    return layer, mixer


def inputs(seed=1):
    return np.random.default_rng(seed).normal(size=(2, 3, TIME, WIDTH)).astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_a_stack_of_two(case):
    """Outputs, and the gradients of inputs and matrices."""
    layer, mixer = theirs(case, num_layers=2)
    x, weights = inputs()
    theirs_x = torch.from_numpy(x).requires_grad_()
    expected = layer(theirs_x)[0]
    (expected * torch.from_numpy(weights)).sum().backward()
    params = [from_torch(mixer, layer.state_dict(), i) for i in range(2)]

    def ours(params, x):
        for own in params:
            x, _ = mixer.apply({"params": own}, x)
        return jnp.sum(x * weights), x

    (gradients, ours_x), y = jax.jit(jax.grad(ours, (0, 1), has_aux=True))(params, jnp.asarray(x))
    close = lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-5, rtol=1e-5)
    close(y, expected)
    close(ours_x, theirs_x.grad)
    named = dict(layer.named_parameters())
    for i, own in enumerate(gradients):
        close(own["input"]["kernel"].T, named[f"weight_ih_l{i}"].grad)
        close(own["recurrent"]["kernel"].T, named[f"weight_hh_l{i}"].grad)
        if f"bias_ih_l{i}" in named:
            close(to_torch(mixer, own, i)[f"bias_ih_l{i}"], named[f"bias_ih_l{i}"].grad)


@pytest.mark.parametrize("case", ["rnn", "gru", "lstm"])
def test_two_directions(case):
    """Concatenated as PyTorch does it, and given to a matrix that tells all of it."""
    layer, mixer = theirs(case, bidirectional=True)
    x, _ = inputs()
    with torch.no_grad():
        expected = layer(torch.from_numpy(x))[0].numpy()
    both = Bidirectional(mixer=mixer)
    params = from_torch(both, layer.state_dict())
    for half in range(2):
        v = jnp.eye(2 * WIDTH)[:, half * WIDTH : (half + 1) * WIDTH]
        y, _ = both.apply({"params": params | {"output": {"kernel": v}}}, jnp.asarray(x))
        np.testing.assert_allclose(y, expected[..., half * WIDTH : (half + 1) * WIDTH], atol=1e-5)
    y, _ = Bidirectional(mixer=mixer, combine="sum").apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(y, expected[..., :WIDTH] + expected[..., WIDTH:], atol=1e-5)


@pytest.mark.parametrize("case", ["rnn", "gru", "lstm"])
def test_there_and_back(case):
    """PyTorch computes the same from what we write; its second bias alone may have moved into the first."""
    layer, mixer = theirs(case, bidirectional=True)
    both = Bidirectional(mixer=mixer)
    written = to_torch(both, from_torch(both, layer.state_dict()))
    again, _ = theirs(case, bidirectional=True)
    again.load_state_dict({name: torch.from_numpy(np.array(tensor)) for name, tensor in written.items()})
    x = torch.from_numpy(inputs()[0])
    with torch.no_grad():
        np.testing.assert_allclose(again(x)[0].numpy(), layer(x)[0].numpy(), atol=1e-6)


def test_what_pytorch_has_not():
    layer, mixer = theirs("gru")
    with pytest.raises(UsageError, match="reset of gru is 'before'"):
        from_torch(GRU(reset="before"), layer.state_dict())
    with pytest.raises(UsageError, match="peepholes"):
        from_torch(LSTM(peepholes=True), layer.state_dict())
    with pytest.raises(UsageError, match="'weight_ih_l3' is missing"):
        from_torch(mixer, layer.state_dict(), 3)
    with pytest.raises(UsageError, match="has 18 rows; expected 24, 4 times the 6 units"):
        from_torch(LSTM(), layer.state_dict())
