"""RNNsearch: translation that learns to align (Bahdanau et al. 2014, 1409.0473).

A bidirectional gated network gives each source word an annotation h_j = [forward; backward] (section 3.2). Before the
the decoder's i-th step, its state s_{i-1} attends to them (section 3.1 and appendix A.1.2):

    e_ij = v_a . tanh(W_a s_{i-1} + U_a h_j),   alpha_i = softmax(e_i)        (6)
    c_i = sum_j alpha_ij h_j                                                  (5)

The step takes the last word and the context (appendix A.2.2), from s_0 = tanh(W_s h_1), h_1 backward, on:

    r, z = sigmoid(W_{r,z} E y_{i-1} + U_{r,z} s_{i-1} + C_{r,z} c_i)
    s~ = tanh(W E y_{i-1} + U (r * s_{i-1}) + C c_i),   s_i = (1 - z) * s_{i-1} + z * s~

and the next word's scores come through a layer of maxout, with the state before the step:

    t~ = U_o s_{i-1} + V_o E y_{i-1} + C_o c_i,   t_k = max(t~_{2k-1}, t~_{2k}),   p(y_i | ...) = softmax(W_o t)

The encoder is the same but for c_i. Biases, which the paper leaves out of its equations, are added to the gates, W_s,
t~ and W_o. The authors' code (GroundHog, experiments/nmt/encdec.py) agrees: the score, s_0, where the reset gate
stands, and that t~ sees the state before the step; its W_o has the rank of the word vectors, and here it has full rank.
z is written as in equation 7 of Cho et al. (1406.1078) in code: the fraction of the old state, which is the same
network with W_z, U_z, C_z and their bias of the other sign.
"""

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.inputs import pairs
from arch_jax.layers.dense import Dense
from arch_jax.layers.mixers.contract import adapted
from arch_jax.layers.seq2seq.cells import GRUCells
from arch_jax.layers.seq2seq.encoder_decoder import Memory, RecurrentEncoderDecoder, along, maxout
from arch_jax.layers.seq2seq.scores import AdditiveAttention, Score
from arch_jax.ops.segments import read_where_real
from arch_jax.registry import Paper, register


@component("bahdanau", kind="model")
class Bahdanau(RecurrentEncoderDecoder):
    """RNNsearch: a bidirectional encoder, and a decoder that attends before each step.

    Attributes:
      vocabulary: tokens of the target.
      source_vocabulary: tokens of the source; None is as many as the target has.
      shared: whether source and target have one table of word vectors.
      embedding: m, the width of a word vector.
      hidden: n, the units of the encoder in each direction, and of the decoder.
      maxout: l, the units of the output's hidden layer, each the larger of two numbers.
      score: of the annotations.
      initial_std: standard deviation of the initial matrices (appendix B.1); recurrent ones are orthogonal, biases 0.
      dropout: dropout rate of the word vectors; the paper has none.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    attends: ClassVar[bool] = True

    embedding: int = 620
    hidden: int = 1000
    maxout: int = 500
    score: Score = AdditiveAttention()
    initial_std: float = 0.01

    def __post_init__(self) -> None:
        if self.maxout < 1:
            raise UsageError(f"maxout is {self.maxout}; expected at least 1 unit")
        super().__post_init__()

    @property
    def word_initial(self):
        return nn.initializers.normal(self.initial_std)

    def setup(self) -> None:
        super().setup()
        normal = self.word_initial
        dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
        self.forward = GRUCells(self.hidden, normal, **dtypes)
        self.backward = GRUCells(self.hidden, normal, **dtypes)
        self.beginning = Dense(self.hidden, initial=normal, **dtypes)
        self.look = adapted(self.score, **dtypes)
        self.decoder = GRUCells(self.hidden, normal, **dtypes)
        self.deep = Dense(2 * self.maxout, initial=normal, **dtypes)
        self.output = Dense(self.vocabulary, initial=normal, **dtypes)

    def encode(
        self,
        source: Int[Array, "batch source"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Memory:
        """The annotations, and the backward network's state at the first word."""
        x = self.heard(read_where_real(source, source_mask), train)
        forward, _ = self.forward(x, None, source_mask)
        backward, (first,) = self.backward(x, None, source_mask, reverse=True)
        h = jnp.concatenate([forward, backward], axis=-1)
        return Memory(last=first, annotations=h, prepared=self.look.prepared(h, self.hidden))

    def begin(self, memory, source_mask):
        return (jnp.tanh(self.beginning(memory.last)).astype(self.decoder.precise),)

    def write(self, y, state, train):
        n, memory = self.hidden, state.memory
        (w, w_c), u, b = self.decoder.weights(self.embedding, context=2 * n)
        look = self.look.reader(n, 2 * n)
        product = lambda x, matrix: (x.astype(matrix.dtype) @ matrix).astype(b.dtype)

        def step(carry, heard):
            (s,) = carry
            context, weights = look(s[:, None], memory.annotations, memory.prepared, state.memory_mask)  # 5, 6
            context = context[:, 0]
            heard = heard + product(context, w_c)
            r, z = jnp.split(nn.sigmoid(heard[:, : 2 * n] + product(s, u[:, : 2 * n])), 2, axis=-1)
            proposed = jnp.tanh(heard[:, 2 * n :] + product(r * s, u[:, 2 * n :]))
            after = z * s + (1 - z) * proposed
            return (after,), {"s": s.astype(self.dtype), "context": context, "weights": weights[:, 0]}

        return along(step, state.carry, product(y, w) + b)  # W E y_{i-1}, for all i at once

    def read(self, y, out, state):
        t = self.deep(jnp.concatenate([out["s"], y, out["context"]], axis=-1))
        return self.output(maxout(t))


@register(
    "bahdanau",
    family="seq2seq",
    objective="sequence_to_sequence",
    paper=Paper(
        "Neural Machine Translation by Jointly Learning to Align and Translate",
        "Bahdanau, Cho and Bengio",
        2014,
        "1409.0473",
    ),
    inputs=pairs(50, 50),
    shrink={"vocabulary": 32, "embedding": 12, "hidden": 16, "maxout": 10, "score.hidden": 14},
    reference="the paper's equations in PyTorch: logits, loss and gradients within 1e-5",
    departures=(
        "Biases, which the paper leaves out of its equations, are added to the gates and to the output's layers.",
        "v_a starts as wide as W_a and U_a; appendix B.1 starts it at 0, from where W_a and U_a have no gradient at "
        "first.",
        "The output matrix has full rank, as in the paper; the authors' code factors it.",
    ),
    difference=2.6e-7,
)
def bahdanau() -> Bahdanau:
    """RNNsearch-50: 1000 units, word vectors of 620, n' = 1000 for the alignment, 500 maxout units, 30,000 words."""
    return Bahdanau(vocabulary=30_000, score=AdditiveAttention(hidden=1000))
