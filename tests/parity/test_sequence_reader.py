"""torch.nn.LSTM, GRU and RNN with a linear layer behind the last time, as networks of the adding problem are built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from arch_jax.interop.torch_nn import from_torch
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.layers.seq2seq.sequence_reader import SequenceReader

torch = pytest.importorskip("torch", reason="parity needs torch: pip install arch-jax[parity]")

FEATURES, WIDTH, TIME, OUTPUTS = 2, 6, 9, 3


@pytest.mark.parametrize(
    ("cls", "mixer"),
    [(torch.nn.LSTM, LSTM()), (torch.nn.GRU, GRU()), (torch.nn.RNN, RNN())],
    ids=["lstm", "gru", "rnn"],
)
def test_the_last_state_and_a_linear_layer(cls, mixer):
    """Answers, and the gradient of the mean squared error in the inputs and in all matrices."""
    torch.manual_seed(0)
    layer, linear = cls(FEATURES, WIDTH, batch_first=True), torch.nn.Linear(WIDTH, OUTPUTS)
    x, targets = (np.random.default_rng(1).normal(size=shape).astype(np.float32) for shape in ((4, TIME, 2), (4, 3)))
    given = torch.from_numpy(x).requires_grad_()
    answers = linear(layer(given)[0][:, -1])
    torch.nn.functional.mse_loss(answers, torch.from_numpy(targets)).backward()

    # The features, filled up with zeros: the layer in front is the identity, and rows of its successor see nothing.
    weights = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    heard = weights["weight_ih_l0"]
    weights["weight_ih_l0"] = torch.cat([heard, torch.zeros(len(heard), WIDTH - FEATURES)], dim=1)
    numbers = lambda parameter: jnp.asarray(parameter.detach().numpy())
    params = {
        "input": {"kernel": jnp.eye(FEATURES, WIDTH), "bias": jnp.zeros(WIDTH)},
        "stack": {"layer_0": {"mixer": from_torch(mixer, weights, 0)}},
        "output": {"kernel": numbers(linear.weight).T, "bias": numbers(linear.bias)},
    }
    model = SequenceReader(outputs=OUTPUTS, width=WIDTH, mixer=mixer)
    shapes = lambda tree: jax.tree.map(jnp.shape, tree)
    assert shapes(params) == shapes(model.init(jax.random.key(0), jnp.asarray(x))["params"])

    def loss(params, x):
        ours = model.apply({"params": params}, x)
        return jnp.mean(jnp.square(ours - targets)), ours

    (gradients, ours_x), ours = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, jnp.asarray(x))
    close = lambda a, b: np.testing.assert_allclose(a, b.detach().numpy(), atol=1e-5, rtol=1e-5)
    close(ours, answers)
    close(ours_x, given.grad)
    own, named = gradients["stack"]["layer_0"]["mixer"], dict(layer.named_parameters())
    close(own["input"]["kernel"][:FEATURES].T, named["weight_ih_l0"].grad)
    close(own["recurrent"]["kernel"].T, named["weight_hh_l0"].grad)
    close(gradients["output"]["kernel"].T, linear.weight.grad)
