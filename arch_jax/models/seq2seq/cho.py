"""The RNN encoder-decoder that introduced the gated unit (Cho et al. 2014, 1406.1078, appendix A).

The encoder's units h_t are those of equations 5 to 8, and the summary of a source of N words is c = tanh(V h_N). The
decoder sees it at every step, from h'_0 = tanh(V' c) on:

    r', z' = sigmoid(W'_{r,z} e(y_{t-1}) + U'_{r,z} h'_{t-1} + C_{r,z} c)
    h~'_t = tanh(W' e(y_{t-1}) + r' * (U' h'_{t-1} + C c))
    h'_t = z' * h'_{t-1} + (1 - z') * h~'_t

    s'_t = O_h h'_t + O_y e(y_{t-1}) + O_c c,   s_i = max(s'_{2i-1}, s'_{2i})   (maxout)
    p(y_t = j | ...) = softmax_j(g_j . s_t),    G = G_l G_r of rank 100 (section 4.1)

Here the reset gate of the decoder stands in front of the source's summary too, and after the product; the encoder's is
in front of its product. Biases, which the paper leaves out of its equations, are added to the gates, V, V' and O.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.inputs import pairs
from arch_jax.layers.dense import Dense
from arch_jax.layers.seq2seq.cells import GRUCells, over_time
from arch_jax.layers.seq2seq.encoder_decoder import Memory, RecurrentEncoderDecoder, maxout
from arch_jax.ops.recurrence.cells import reset_after
from arch_jax.ops.segments import read_where_real
from arch_jax.registry import Paper, register


@component("cho", kind="model")
class Cho(RecurrentEncoderDecoder):
    """A gated encoder, and a gated decoder that sees the source's summary at every step.

    Attributes:
      vocabulary: tokens of the target.
      source_vocabulary: tokens of the source; None is as many as the target has.
      shared: whether source and target have one table of word vectors.
      embedding: width of a word vector.
      hidden: units of the encoder, and as many of the decoder.
      maxout: units of the output's hidden layer, each the larger of two numbers.
      rank: of the output's matrix; None is a matrix of full rank.
      initial_std: standard deviation of the initial matrices (section 4.1); recurrent ones are orthogonal.
      dropout: dropout rate of the word vectors; the paper has none.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    embedding: int = 100
    hidden: int = 1000
    maxout: int = 500
    rank: int | None = 100
    initial_std: float = 0.01

    def __post_init__(self) -> None:
        if self.maxout < 1:
            raise UsageError(f"maxout is {self.maxout}; expected at least 1 unit")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"rank is {self.rank}; expected at least 1, or none for a full matrix")
        super().__post_init__()

    @property
    def word_initial(self):
        return nn.initializers.normal(self.initial_std)

    def setup(self) -> None:
        super().setup()
        normal = self.word_initial
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = GRUCells(self.hidden, normal, **dtypes)
        self.decoder = GRUCells(self.hidden, normal, **dtypes)
        self.summary = Dense(self.hidden, initial=normal, **dtypes)
        self.beginning = Dense(self.hidden, initial=normal, **dtypes)
        self.deep = Dense(2 * self.maxout, initial=normal, **dtypes)
        if self.rank is not None:
            self.narrow = Dense(self.rank, False, initial=normal, **dtypes)
        self.output = Dense(self.vocabulary, initial=normal, **dtypes)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Memory:
        """The summary c of the source."""
        _, (h,) = self.encoder(self.heard(read_where_real(source, source_mask), train), None, source_mask)
        return Memory(context=jnp.tanh(self.summary(h)))

    def begin(self, memory, source_mask):
        return (jnp.tanh(self.beginning(memory.context)).astype(self.decoder.precise),)

    def write(self, y, state, train):
        n = self.hidden
        (w, w_c), u, b = self.decoder.weights(self.embedding, context=n)
        heard = (y @ w).astype(b.dtype) + b  # W' e(y_{t-1}), in order of r', z' and h~'
        summary = (state.memory.context @ w_c).astype(b.dtype)[:, None]  # C c
        # What h'_{t-1} U is added to; all that is in the last third is then multiplied by r'.
        inside = jnp.broadcast_to(summary[..., 2 * n :], (*heard.shape[:2], n))
        added = jnp.concatenate([heard[..., : 2 * n] + summary[..., : 2 * n], inside], axis=-1)
        carry, h = over_time(reset_after, u, None, state.carry, added, heard[..., 2 * n :])
        return carry, {"h": h.astype(self.dtype)}

    def read(self, y, out, state):
        c = jnp.broadcast_to(state.memory.context[:, None], out["h"].shape)
        s = maxout(self.deep(jnp.concatenate([out["h"], y, c], axis=-1)))
        return self.output(s if self.rank is None else self.narrow(s))


@register(
    "cho",
    family="seq2seq",
    objective="sequence_to_sequence",
    paper=Paper(
        "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        "Cho et al.",
        2014,
        "1406.1078",
    ),
    inputs=pairs(30, 30),
    shrink={"vocabulary": 32, "embedding": 8, "hidden": 16, "maxout": 12, "rank": 10},
    reference="the paper's equations in PyTorch: logits, loss and gradients within 1e-5",
    departures=(
        "Biases, which the paper leaves out of its equations, are added to the gates and to the output's layers.",
    ),
    difference=4.2e-7,
)
def cho() -> Cho:
    """1000 + 1000 units, word vectors of 100, 500 maxout units, 15,000 words on both sides."""
    return Cho(vocabulary=15_000)
