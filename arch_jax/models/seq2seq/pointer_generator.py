"""Get to the point: summarisation with pointer-generator networks (See et al. 2017, 1704.04368).

A bidirectional LSTM annotates the source with h_i. After each step of the decoder's LSTM, whose state is s_t = [c; h],

    e_i = v . tanh(W_h h_i + W_s s_t + w_c k_i + b_attn)                          (1), with coverage (11)
    a = softmax(e),   h* = sum_i a_i h_i                                          (2), (3)
    P_vocab = softmax(V' (V [h; h*] + b) + b')                                    (4)
    p_gen = sigmoid(w_h . h* + w_s . s_t + w_x . x_t + b_ptr)                     (8)
    P(w) = p_gen P_vocab(w) + (1 - p_gen) sum of a_i over the places of w         (9)

where k = a_0 + ... + a_{t-1} is the coverage (10). The coverage loss, sum_i min(a_i, k_i) (12), is the objective's
field `coverage`. Words outside the vocabulary have ids that mean something within their example only: the last `extra`
of all ids. They are read as the unknown word, and written by copying alone.

Details that the paper leaves open follow the authors' code, which gives its parameter counts: the step's input is
x_t = W [y_{t-1}; h*_{t-1}] + b, as wide as a word vector, with h*_0 = 0; the decoder begins from
relu(W [forward; backward] + b), for c and h each.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.inputs import pairs
from arch_jax.layers.dense import Dense
from arch_jax.layers.seq2seq.cells import LSTMCells, lstm_step, uniform
from arch_jax.layers.seq2seq.encoder_decoder import Memory, RecurrentEncoderDecoder, along
from arch_jax.ops.attention.scores import attend, tanh_scores
from arch_jax.ops.segments import read_where_real
from arch_jax.ranges import Count
from arch_jax.registry import Paper, register

#: Probabilities below this one count as this one: a word that can be neither generated nor copied has a finite loss.
LEAST = 1e-30


@component("pointer_generator", kind="model")
class PointerGenerator(RecurrentEncoderDecoder):
    """Generates words of its vocabulary, or copies those of the source.

    Logits are log P(w): their softmax is P.

    Attributes:
      vocabulary: number of ids, of source and target, those of words outside the vocabulary among them.
      source_vocabulary: None; both sides have the same words.
      shared: true; both sides have the same word vectors.
      embedding: width of a word vector.
      hidden: cells of the encoder in each direction, and of the decoder.
      extra: the number of ids, the last ones, that stand for words outside the vocabulary.
      unknown: the token that replaces such a word in the input.
      pointer: whether words can be copied; without, it is the paper's baseline.
      coverage: whether the attention sees the coverage so far.
      dropout: dropout rate of the word vectors; the paper has none.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    attends: ClassVar[bool] = True

    shared: bool = True
    embedding: int = 128
    hidden: int = 256
    extra: Count = 0
    unknown: Count = 0
    pointer: bool = True
    coverage: bool = True

    def __post_init__(self) -> None:
        if not self.shared or self.source_vocabulary is not None:
            raise UsageError("a pointer-generator copies words: expected shared=true and no source_vocabulary")
        if not 0 <= self.extra < self.vocabulary:
            raise UsageError(f"extra is {self.extra}; expected 0 to {self.vocabulary - 1}, less than the vocabulary")
        if not 0 <= self.unknown < self.known:
            raise UsageError(f"unknown is token {self.unknown}; expected 0 to {self.known - 1}, a word that is known")
        if self.extra and not self.pointer:
            raise UsageError(f"without a pointer no word outside the vocabulary is written; extra is {self.extra}, "
                             "expected 0")  # fmt: skip
        super().__post_init__()

    @property
    def known(self):
        return self.vocabulary - self.extra

    @property
    def word_initial(self):
        return nn.initializers.truncated_normal(1e-4)

    def look_up(self, table, tokens):
        outside = (tokens >= self.known) & (tokens < self.vocabulary)
        return table(jnp.where(outside, self.unknown, tokens))

    def setup(self) -> None:
        super().setup()
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        draw, narrow, glorot = uniform(0.02), nn.initializers.truncated_normal(1e-4), nn.initializers.glorot_uniform()
        # The forget gates begin open: a bias of 1, in order of the gates i, f, g, o.
        open_gates = lambda key, shape, dtype: jnp.repeat(jnp.asarray([0, 1, 0, 0], dtype), shape[0] // 4)
        cells = lambda: LSTMCells(self.hidden, draw, draw, open_gates, **dtypes)
        self.forward, self.backward, self.decoder = cells(), cells(), cells()
        self.reduce_h = Dense(self.hidden, initial=narrow, **dtypes)
        self.reduce_c = Dense(self.hidden, initial=narrow, **dtypes)
        width = 2 * self.hidden
        self.of_annotation = Dense(width, False, initial=glorot, **dtypes)
        self.of_state = Dense(width, initial=glorot, **dtypes)
        self.v = self.param("v", uniform((3 / width) ** 0.5), (width,), self.parameter_dtype)
        if self.coverage:
            draw_one = uniform((6 / (1 + width)) ** 0.5)
            self.of_coverage = self.param("of_coverage", draw_one, (width,), self.parameter_dtype)
        self.merge = Dense(self.embedding, initial=glorot, **dtypes)
        self.mix = Dense(self.hidden, initial=glorot, **dtypes)
        self.output = Dense(self.known, initial=narrow, **dtypes)
        if self.pointer:
            self.gate = Dense(1, initial=glorot, **dtypes)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Memory:
        """The annotations, the last states of both directions, and the words themselves."""
        source = read_where_real(source, source_mask)
        x = self.heard(source, train)
        forward, (h, c) = self.forward(x, None, source_mask)
        backward, (h_backward, c_backward) = self.backward(x, None, source_mask, reverse=True)
        annotations = jnp.concatenate([forward, backward], axis=-1)
        last = jnp.concatenate([h, h_backward], axis=-1), jnp.concatenate([c, c_backward], axis=-1)
        return Memory(last, annotations=annotations, prepared=self.of_annotation(annotations), tokens=source)

    def begin(self, memory, source_mask):
        h, c = memory.last
        batch, source, width = memory.annotations.shape
        precise = self.decoder.precise
        cells = nn.relu(self.reduce_h(h)).astype(precise), nn.relu(self.reduce_c(c)).astype(precise)
        return cells, jnp.zeros((batch, width), self.dtype), jnp.zeros((batch, source), precise)

    def write(self, y, state, train):
        memory, width = state.memory, 2 * self.hidden
        (w,), u, b = self.decoder.weights(self.embedding)
        w_merge, b_merge = self.merge.weights(self.embedding + width)
        w_state, b_state = self.of_state.weights(width)
        v = self.v.astype(self.dtype)
        w_coverage = self.of_coverage.astype(self.dtype) if self.coverage else None
        product = lambda x, matrix: (x.astype(matrix.dtype) @ matrix).astype(b.dtype)

        def step(carry, y):
            cells, context, covered = carry
            x = y + context @ w_merge[self.embedding :]
            h, c = cells = lstm_step(cells, product(x, w) + b + product(cells[0], u))
            s = jnp.concatenate([c, h], axis=-1).astype(self.dtype)
            keys = memory.prepared
            if self.coverage:
                keys = keys + covered[:, :, None].astype(self.dtype) * w_coverage
            scores = tanh_scores((s @ w_state + b_state)[:, None], keys, v)  # 1, 11
            context, weights = attend(scores, memory.annotations, state.memory_mask)  # 2, 3
            context, weights = context[:, 0], weights[:, 0]
            out = {"s": s, "context": context, "x": x, "weights": weights}
            return (cells, context, covered + weights.astype(covered.dtype)), out  # 10

        return along(step, state.carry, y @ w_merge[: self.embedding] + b_merge)

    def read(self, y, out, state):
        context, s, weights = out["context"], out["s"], out["weights"]
        h = s[..., self.hidden :]
        logits = self.output(self.mix(jnp.concatenate([h, context], axis=-1)))
        if not self.pointer:
            return logits
        of_words = nn.softmax(logits.astype(weights.dtype), axis=-1)  # 4
        p_gen = nn.sigmoid(self.gate(jnp.concatenate([context, s, out["x"]], axis=-1)).astype(weights.dtype))  # 8
        spread = jnp.pad(p_gen * of_words, ((0, 0), (0, 0), (0, self.extra)))
        row, time = jnp.arange(spread.shape[0])[:, None, None], jnp.arange(spread.shape[1])[:, None]
        p = spread.at[row, time, state.memory.tokens[:, None]].add((1 - p_gen) * weights)  # 9
        return jnp.log(jnp.maximum(p, LEAST)).astype(self.dtype)


@register(
    "pointer-generator",
    family="seq2seq",
    objective="sequence_to_sequence",
    paper=Paper(
        "Get To The Point: Summarization with Pointer-Generator Networks", "See, Liu and Manning", 2017, "1704.04368"
    ),
    parameters=21_499_600 + 1_153 + 512,
    inputs=pairs(400, 100),
    shrink={"vocabulary": 32, "extra": 4, "embedding": 12, "hidden": 16},
    reference="the paper's equations on torch.nn.LSTM and LSTMCell: logits, loss and gradients within 1e-5",
    departures=(
        "Coverage is part of the model from the start; the paper adds it for the last 3,000 steps of training.",
        "Probabilities below 1e-30 count as that, so that a word that can be neither generated nor copied has a "
        "finite loss.",
        "Details that the paper leaves open (the merged input, the initial state) follow the authors' code, from "
        "which its parameter counts come.",
    ),
    difference=2.9e-7,
)
def pointer_generator() -> PointerGenerator:
    """50,000 words and up to 400 more from the source; 256 cells; 21,499,600 parameters, 1,153 and 512 for its parts.

    The sums of section 5: the baseline, what p_gen adds, and what coverage adds.
    """
    return PointerGenerator(vocabulary=50_400, extra=400)
