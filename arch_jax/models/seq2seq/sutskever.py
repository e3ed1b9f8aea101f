"""Sequence to sequence learning with neural networks (Sutskever et al. 2014, 1409.3215).

One deep LSTM encodes the source, another generates the target, and all that passes from one to the other is the state
v after the source's last word (equation 1):

    p(y_1 ... y_T' | x_1 ... x_T) = prod_t p(y_t | v, y_1 ... y_{t-1})

The source is read from its last word to its first (section 3.3), which puts the beginnings of both sentences side by
side. Each probability is a softmax over the target's words (section 3.4).
"""

from typing import ClassVar

from jaxtyping import Array, Bool, Int

from arch_jax.fields import component
from arch_jax.inputs import pairs
from arch_jax.layers.dense import Dense
from arch_jax.layers.seq2seq.cells import LSTMStack, uniform
from arch_jax.layers.seq2seq.encoder_decoder import Memory, RecurrentEncoderDecoder, reversed_tokens
from arch_jax.ops.segments import read_where_real
from arch_jax.registry import Paper, register


@component("sutskever", kind="model")
class Sutskever(RecurrentEncoderDecoder):
    """A deep LSTM encoder and a deep LSTM decoder.

    Attributes:
      vocabulary: tokens of the target.
      source_vocabulary: tokens of the source; None is as many as the target has.
      shared: whether source and target have one table of word vectors.
      embedding: width of a word vector.
      hidden: cells of each layer.
      depth: layers of the encoder, and as many of the decoder.
      reverse: whether the source is read from its end.
      initial_scale: all parameters start uniform in [-initial_scale, initial_scale] (section 3.4).
      dropout: dropout rate of the word vectors, and between layers; the paper has none.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    sizes: ClassVar[tuple[str, ...]] = ("vocabulary", "embedding", "hidden", "depth")

    embedding: int = 1000
    hidden: int = 1000
    depth: int = 4
    reverse: bool = True
    initial_scale: float = 0.08

    @property
    def word_initial(self):
        return uniform(self.initial_scale)

    def setup(self) -> None:
        super().setup()
        draw, dtypes = uniform(self.initial_scale), {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = LSTMStack(self.depth, self.hidden, draw, draw, self.dropout, **dtypes)
        self.decoder = LSTMStack(self.depth, self.hidden, draw, draw, self.dropout, **dtypes)
        self.output = Dense(self.vocabulary, initial=draw, **dtypes)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Memory:
        """v: the state of every layer after the source."""
        source = read_where_real(source, source_mask)
        source = reversed_tokens(source, source_mask) if self.reverse else source
        _, v = self.encoder(self.heard(source, train), None, source_mask, train)
        return Memory(last=v)

    def write(self, y, state, train):
        h, carry = self.decoder(y, state.carry, None, train)
        return carry, {"h": h}

    def read(self, y, out, state):
        return self.output(out["h"])


@register(
    "sutskever",
    family="seq2seq",
    objective="sequence_to_sequence",
    paper=Paper("Sequence to Sequence Learning with Neural Networks", "Sutskever, Vinyals and Le", 2014, "1409.3215"),
    parameters=384_000_000,
    uncounted={"bias$": "384M are the matrices, of which 64M are recurrent (section 3.4)"},
    inputs=pairs(50, 50),
    shrink={"vocabulary": 32, "source_vocabulary": None, "embedding": 16, "hidden": 16, "depth": 2},
    reference="torch.nn.LSTM after bentrevett/pytorch-seq2seq (1): logits, loss and gradients within 1e-5",
    departures=("Gates and outputs have biases, which the published count of 384 million leaves out.",),
    difference=1.4e-7,
)
def sutskever() -> Sutskever:
    """4 + 4 layers of 1000 cells, 160,000 words of the source and 80,000 of the target."""
    return Sutskever(vocabulary=80_000, source_vocabulary=160_000)
