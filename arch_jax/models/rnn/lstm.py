"""LSTM: a stacked recurrent language model.

Hochreiter & Schmidhuber (1997) with the forget gates of Gers et al. (2000), stacked as a language model in the manner
of Zaremba et al. (2014, 1409.2329): for each layer, with dropout only between layers and never along time,

    i, f, g, o = x_t W + h_{t-1} U + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(c_t)

The residual connections, the norm before each layer, and the output layer that shares the embedding table are the
decoder's, not the papers': so it differs from a Transformer here in the mixer and in having no feed-forward part, and
in nothing else.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.rnn.lstm import LSTM
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register


@register(
    "lstm",
    family="rnn",
    objective="next_token",
    paper=Paper(
        "Long Short-Term Memory",
        "Hochreiter and Schmidhuber",
        1997,
        url="https://doi.org/10.1162/neco.1997.9.8.1735",
    ),
    inputs=tokens(256),
    shrink={"vocabulary": 32, "depth": 2, "width": 16},
    reference="torch.nn.LSTM: outputs, last states and gradients within 1e-5",
    departures=(
        "Forget gates (Gers et al. 2000), whose biases start at 1 (Jozefowicz et al. 2015), and gradients through all "
        "gates; the cells of 1997 forget nothing and cut the gradient off.",
        "No peepholes by default (peepholes=true adds them); PyTorch has none.",
        "A language model of residual blocks with a norm before each layer and an output layer that shares the "
        "embedding table; the paper stacks no layers like that. Only the mixer then differs from a Transformer here.",
    ),
    difference=2.9e-7,
)
def lstm() -> Decoder:
    """Two LSTM layers of 312 cells over bytes, about as many parameters as `gpt`."""
    return Decoder(
        vocabulary=256,
        depth=2,
        width=312,
        mixer=LSTM(),
        feed_forward=None,
        tied=True,
        scan=False,  # two layers compile as fast apart
    )
