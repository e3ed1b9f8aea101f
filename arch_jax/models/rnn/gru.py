"""GRU: the gated recurrent unit, stacked as a language model.

Cho et al. (2014, 1406.1078, section 2.3): a reset gate r and an update gate z take the place of the LSTM's cells,

    r, z = sigmoid(x_t W_rz + h_{t-1} U_rz + b_rz)
    h_t = (1 - z) * n + z * h_{t-1}

where n is the candidate: tanh(x_t W_n + b_n + r * (h_{t-1} U_n + b_u)), in the form of cuDNN and PyTorch; the paper's
tanh(x_t W_n + (r * h_{t-1}) U_n + b_n) is the setting `reset="before"` of the mixer. The rest of the model is that
of `lstm`.
"""

from arch_jax.inputs import tokens
from arch_jax.layers.mixers.rnn.gru import GRU
from arch_jax.layers.transformer.decoder import Decoder
from arch_jax.registry import Paper, register


@register(
    "gru",
    family="rnn",
    objective="next_token",
    paper=Paper(
        "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        "Cho et al.",
        2014,
        "1406.1078",
    ),
    inputs=tokens(256),
    shrink={"vocabulary": 32, "depth": 2, "width": 16},
    reference="torch.nn.GRU: outputs and gradients within 1e-5",
    departures=(
        "The reset gate acts after the recurrent product, as in cuDNN and PyTorch; the paper's acts before it "
        "(reset=before).",
        "A language model of residual blocks with a norm before each layer and an output layer that shares the "
        "embedding table; the paper stacks no layers like that. Only the mixer then differs from a Transformer here.",
    ),
    difference=2.7e-7,
)
def gru() -> Decoder:
    """Two layers of 360 units over bytes, about as many parameters as `lstm`."""
    return Decoder(
        vocabulary=256,
        depth=2,
        width=360,
        mixer=GRU(),
        feed_forward=None,
        tied=True,
        scan=False,  # two layers compile as fast apart
    )
