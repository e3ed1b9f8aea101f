"""Effective approaches to attention (Luong et al. 2015, 1508.04025).

Stacked LSTMs encode and decode. At each step the decoder's state h_t is computed first, and then attends to
the encoder's highest states (section 3) for its context c_t:

    a_t(s) = softmax_s(score(h_t, h_s))                           (7), with the scores of section 3.1
    c_t = sum_s a_t(s) h_s
    h~_t = tanh(W_c [c_t; h_t])                                   (5)
    p(y_t | ...) = softmax(W_s h~_t)                              (6)

With input feeding (section 3.3) the lowest layer's input is [E y_{t-1}; h~_{t-1}], so that a step knows the previous
attention. Attention is global, or local: `score="local_attention"`. The source is read from its end (section 4.1);
places in it are nevertheless counted from its first word.
"""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from arch_jax.fields import component
from arch_jax.inputs import pairs
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import adapted
from arch_jax.layers.seq2seq.cells import LSTMStack, lstm_step, uniform
from arch_jax.layers.seq2seq.encoder_decoder import Memory, RecurrentEncoderDecoder, along, reversed_tokens
from arch_jax.layers.seq2seq.scores import LuongAttention, Score
from arch_jax.ops.segments import read_where_real
from arch_jax.registry import Paper, register


@component("luong", kind="model")
class Luong(RecurrentEncoderDecoder):
    """Stacked LSTMs with attention by the current state, and input feeding.

    Attributes:
      vocabulary: tokens of the target.
      source_vocabulary: tokens of the source; None is as many as the target has.
      shared: whether source and target have one table of word vectors.
      embedding: width of a word vector.
      hidden: cells of each layer, and width of h~.
      depth: layers of the encoder, and as many of the decoder.
      score: global or local attention.
      input_feeding: whether h~ is an input of the next step.
      reverse: whether the source is read from its end.
      initial_scale: all parameters start uniform in [-initial_scale, initial_scale] (section 4.1).
      dropout: dropout rate of the word vectors, and between layers; the paper has 0.2 in some models.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    attends: ClassVar[bool] = True
    sizes: ClassVar[tuple[str, ...]] = ("vocabulary", "embedding", "hidden", "depth")

    embedding: int = 1000
    hidden: int = 1000
    depth: int = 4
    score: Score = LuongAttention()
    input_feeding: bool = True
    reverse: bool = True
    initial_scale: float = 0.1

    @property
    def word_initial(self):
        return uniform(self.initial_scale)

    def setup(self) -> None:
        super().setup()
        draw, dtypes = uniform(self.initial_scale), {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.encoder = LSTMStack(self.depth, self.hidden, draw, draw, self.dropout, **dtypes)
        self.decoder = LSTMStack(self.depth, self.hidden, draw, draw, self.dropout, **dtypes)
        self.look = adapted(self.score, **dtypes)
        self.combine = Dense(self.hidden, False, initial=draw, **dtypes)
        self.output = Dense(self.vocabulary, False, initial=draw, **dtypes)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Memory:
        """The highest layer's states, in the order of the words, and the state of every layer after the last one."""
        source = read_where_real(source, source_mask)
        turned = reversed_tokens(source, source_mask) if self.reverse else source
        h, last = self.encoder(self.heard(turned, train), None, source_mask, train)
        h = reversed_tokens(h, source_mask) if self.reverse else h
        return Memory(last=last, annotations=h, prepared=self.look.prepared(h, self.hidden))

    def begin(self, memory, source_mask):
        batch = memory.annotations.shape[0]
        return memory.last, jnp.zeros((batch, self.hidden), self.dtype)

    def write(self, y, state, train):
        memory, feeding = state.memory, {"fed": self.hidden} if self.input_feeding else {}
        layers = self.decoder.weights(self.embedding, **feeding)
        look, (w_combine, _) = self.look.reader(self.hidden, self.hidden), self.combine.weights(2 * self.hidden)
        (w, *w_fed), _, b = layers[0]
        product = lambda x, matrix: (x.astype(matrix.dtype) @ matrix).astype(b.dtype)

        def step(carry, now):
            (cells, fed), (heard, place, kept) = carry, now
            after = []
            for i, (cell, (inputs, u, bias)) in enumerate(zip(cells, layers)):
                if i:  # the word's part of the lowest layer is there already
                    below = after[-1][0]
                    below = below if kept is None else below * kept[:, i - 1]
                    heard = product(below, inputs[0]) + bias
                elif w_fed:
                    heard = heard + product(fed, w_fed[0])
                after.append(lstm_step(cell, heard + product(cell[0], u)))
            h = after[-1][0].astype(self.dtype)
            context, weights = look(h[:, None], memory.annotations, memory.prepared, state.memory_mask, place[:, None])
            attentional = jnp.tanh(jnp.concatenate([context[:, 0], h], axis=-1) @ w_combine)  # 5
            return (tuple(after), attentional), {"h": attentional, "weights": weights[:, 0]}

        batch, time = y.shape[:2]
        place = state.written[:, None] + jnp.arange(time)
        kept = None
        if train and self.dropout and self.depth > 1:
            kept = self.drop(jnp.ones((batch, time, self.depth - 1, self.hidden), b.dtype), deterministic=False)
        return along(step, state.carry, (product(y, w) + b, place, kept))

    def read(self, y, out, state):
        return self.output(out["h"])  # 6


@register(
    "luong",
    family="seq2seq",
    objective="sequence_to_sequence",
    paper=Paper(
        "Effective Approaches to Attention-based Neural Machine Translation",
        "Luong, Pham and Manning",
        2015,
        "1508.04025",
    ),
    inputs=pairs(50, 50),
    shrink={"vocabulary": 32, "embedding": 16, "hidden": 16, "depth": 2},
    reference="the paper's equations on torch.nn.LSTM and LSTMCell: logits, loss and gradients within 1e-5",
    departures=("Dropout is off by default; the paper uses 0.2 in some of its models.",),
    difference=3.3e-7,
)
def luong() -> Luong:
    """4 + 4 layers of 1000 cells with the score "general", 50,000 words on both sides."""
    return Luong(vocabulary=50_000)
