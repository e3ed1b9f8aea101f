"""RNN: Elman's simple recurrent network, stacked as a language model.

Elman (1990), "Finding structure in time", with the hyperbolic tangent, as in `torch.nn.RNN`:

    h_t = tanh(x_t W + h_{t-1} U + b)

The rest of the model is that of `lstm`.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.rnn.rnn import RNN
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register


@register(
    "rnn",
    family="rnn",
    objective="next_token",
    paper=Paper("Finding structure in time", "Elman", 1990, url="https://doi.org/10.1207/s15516709cog1402_1"),
    inputs=tokens(256),
    shrink={"vocabulary": 32, "depth": 2, "width": 16},
    reference="torch.nn.RNN: outputs and gradients within 1e-5",
    departures=(
        "tanh units, as in PyTorch; the paper has logistic ones.",
        "Gradients go back through the whole window; the paper goes back by one step.",
        "A language model of residual blocks with a norm before each layer and an output layer that shares the "
        "embedding table; the paper stacks no layers like that. Only the mixer then differs from a Transformer here.",
    ),
    difference=4.8e-7,
)
def rnn() -> Decoder:
    """Two layers of 608 units over bytes, about as many parameters as `lstm`."""
    return Decoder(
        vocabulary=256,
        depth=2,
        width=608,
        mixer=RNN(),
        feed_forward=None,
        tied=True,
        scan=False,  # two layers compile as fast apart
    )
