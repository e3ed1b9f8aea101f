"""Base of the recurrent encoder-decoders: embeddings, padding, and one decoder for training and generation.

A model of `models/seq2seq` defines how a source is read (`encode`), the decoder's initial state (`begin`), one step of
it (`write`) and the next word's scores (`read`). Teacher forcing is decoding from the start: the
whole target is given at once, and everything outside the recurrence, above all the output layer, is computed for all
times together.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from arch_jax.errors import UsageError
from arch_jax.fields import DType
from arch_jax.layers.dense import Embedding
from arch_jax.layers.mixers.contract import check_sizes
from arch_jax.layers.sowing import sow_output
from arch_jax.ops import precision
from arch_jax.ops.maximum import largest


@flax.struct.dataclass
class Memory:
    """The encoder's output; every array has the batch as its first axis.

    Attributes:
      last: the decoder's initial state, which it does not see again.
      context: a summary that every step of the decoder sees, or None.
      annotations: one vector a source token, "batch source width", or None.
      prepared: the part of the annotations' scores that depends on no query, or None.
      tokens: the source itself, for a decoder that copies, or None.
    """

    # No shape annotations: JAX rebuilds these containers with placeholders that are not arrays.
    last: Any = None
    context: Any = None
    annotations: Any = None
    prepared: Any = None
    tokens: Any = None


@flax.struct.dataclass
class RecurrentState:
    """Decoding state; every array has the batch as its first axis.

    Attributes:
      carry: recurrent state of the decoder.
      memory: the encoder's output, without the decoder's initial state.
      memory_mask: True at real tokens of the source, "batch source", or None.
      written: tokens of the target so far, "batch".
      model: the name of the class whose state it is.
    """

    carry: Any
    memory: Memory
    memory_mask: Any
    written: Any
    model: str = flax.struct.field(pytree_node=False)


class Words(Embedding):
    """An embedding table with an initializer of its own.

    Attributes:
      entries: rows of the table.
      features: width of a row.
      initial_std: ignored.
      dtype: of the computation.
      parameter_dtype: of the table.
      initial: the initializer, called with (key, shape, dtype).
    """

    initial: Callable = nn.initializers.normal(0.02)

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.initial, (self.entries, self.features), self.parameter_dtype)


class RecurrentEncoderDecoder(nn.Module):
    """The parts that every recurrent encoder-decoder has.

    Attributes:
      vocabulary: tokens of the target.
      source_vocabulary: tokens of the source; None is as many as the target has.
      shared: whether source and target have one table of word vectors.
      embedding: width of a word vector.
      dropout: dropout rate of the word vectors, and between stacked layers.
      dtype: of the computation; gates, states, softmax and losses are at least float32.
      parameter_dtype: of the parameters.
    """

    shardings: ClassVar = (
        (r"words/embedding$", ("tensor", "fsdp")),
        (r"^output/kernel$", ("fsdp", "tensor")),
        (r"(input|context|fed|recurrent)/kernel$", ("fsdp", None)),
    )
    #: Whether there are weights over the source, which `attention` gives.
    attends: ClassVar[bool] = False
    #: The fields that have to be at least 1.
    sizes: ClassVar[tuple[str, ...]] = ("vocabulary", "embedding", "hidden")

    vocabulary: int
    source_vocabulary: int | None = None
    shared: bool = False
    embedding: int = 256
    dropout: float = 0.0
    dtype: DType = jnp.float32
    parameter_dtype: DType = jnp.float32

    def __post_init__(self) -> None:
        check_sizes(self, self.sizes)
        if self.source_vocabulary is not None and self.source_vocabulary < 1:
            raise UsageError(f"source_vocabulary is {self.source_vocabulary}; expected at least 1, or none")
        if self.shared and self.source_vocabulary not in (None, self.vocabulary):
            raise UsageError(
                f"one table for both sides (shared) has {self.vocabulary} words, and source_vocabulary is "
                f"{self.source_vocabulary}; expected none, or shared=false"
            )
        super().__post_init__()

    # Defined by each model.

    @property
    def word_initial(self) -> Callable:
        """Initializer of the embeddings."""
        return nn.initializers.normal(0.01)

    def encode(self, source: Array, source_mask: Array | None = None, train: bool = False) -> Memory:
        """The encoder's output for a source."""
        raise TypeError(f"{type(self).__name__} must define how a source is read")

    def begin(self, memory: Memory, source_mask: Array | None) -> Any:
        """The decoder's initial state; by default the encoder's last one."""
        return memory.last

    def write(self, y: Array, state: RecurrentState, train: bool) -> tuple[Any, dict[str, Array]]:
        """The decoder's steps on the words y, "batch time embedding".

        Returns:
          (the next recurrent state, arrays "batch time ..." that `read` takes; "weights" among them are those over
          the source).
        """
        raise TypeError(f"{type(self).__name__} must define a step of its decoder")

    def read(self, y: Array, out: dict[str, Array], state: RecurrentState) -> Array:
        """Logits "batch time vocabulary" from the words and what the steps gave, for all times at once."""
        raise TypeError(f"{type(self).__name__} must define how the next word is scored")

    @property
    def known(self) -> int:
        """The number of target tokens that have an embedding."""
        return self.vocabulary

    def look_up(self, table: Words, tokens: Array) -> Array:
        """The embeddings of tokens."""
        return table(tokens)

    # Derived.

    def setup(self) -> None:
        def table(entries: int) -> Words:
            dtypes = {"dtype": self.dtype, "parameter_dtype": self.parameter_dtype}
            return Words(entries, self.embedding, initial=self.word_initial, **dtypes)

        self.target_words = table(self.known)
        if not self.shared:
            self.source_words = table(self.source_vocabulary or self.vocabulary)
        self.drop = nn.Dropout(self.dropout)

    def heard(self, source: Int[Array, "batch source"], train: bool) -> Float[Array, "batch source embedding"]:
        """The source's embeddings."""
        table = self.target_words if self.shared else self.source_words
        return self.drop(self.look_up(table, source), deterministic=not train)

    def __call__(
        self,
        source: Int[Array, "batch source"],
        target: Int[Array, "batch time"],
        source_mask: Bool[Array, "batch source"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch time vocabulary"]:
        """Logits for the token after each of the target.

        Args:
          source: indices in [0, source_vocabulary); one outside gives NaN.
          target: the target so far, beginning with the start token.
          source_mask: True at real tokens of the source; padding is on the right. None is all.
          train: whether dropout is active (needs `rngs={"dropout": key}`).
        """
        memory = self.encode(source, source_mask, train)
        return self.decode(target, self.start(memory, source_mask, target.shape[1]), train)[0]

    def start(self, memory: Memory, source_mask: Bool[Array, "batch source"] | None, length: int = 0) -> RecurrentState:
        """The state before the first token of a target; it has the same size for every `length`."""
        batch = jax.tree.leaves(memory)[0].shape[0]
        carry = self.begin(memory, source_mask)
        written = jnp.zeros((batch,), jnp.int32)
        return RecurrentState(carry, memory.replace(last=None), source_mask, written, type(self).__name__)

    def decode(
        self, target: Int[Array, "batch time"], state: RecurrentState, train: bool = False
    ) -> tuple[Float[Array, "batch time vocabulary"], RecurrentState]:
        """Logits for the token after each of the next tokens of the target, and the state after them.

        The weights over the source, where there are any, are sown as "weights" into the collection "intermediates".

        Raises:
          UsageError: a state of another batch size, or of another kind of model.
        """
        if state.model != type(self).__name__:
            raise UsageError(
                f"{type(self).__name__} was given the state of a {state.model}; expected its own, which the method "
                "`start` gives"
            )
        if state.written.shape != target.shape[:1]:
            raise UsageError(
                f"the state has {state.written.shape[0]} rows; expected {target.shape[0]}, as many as the target has"
            )
        y = self.drop(self.look_up(self.target_words, target), deterministic=not train)
        carry, out = self.write(y, state, train)
        if "weights" in out:
            sow_output(self, "weights", out["weights"])
        after = state.replace(carry=carry, written=state.written + target.shape[1])
        return self.read(y, out, state), after

    def attention(
        self,
        source: Int[Array, "batch source"],
        target: Int[Array, "batch time"],
        source_mask: Bool[Array, "batch source"] | None = None,
    ) -> Float[Array, "batch time source"]:
        """Attention weights over the source for the token after each of the target; at least float32.

        Raises:
          UsageError: the model has no attention.
        """
        if not self.attends:
            raise UsageError(
                f"{type(self).__name__} has no attention whose weights could be shown; expected a model such as "
                "'bahdanau'"
            )
        state = self.start(self.encode(source, source_mask), source_mask, target.shape[1])
        return self.write(self.look_up(self.target_words, target), state, False)[1]["weights"]

    def unrolled(self, variables: Any) -> tuple["RecurrentEncoderDecoder", Any]:
        """The model in its form for decoding: unchanged."""
        return self, variables


def along(step: Callable, carry: Any, given: Any) -> tuple[Any, Any]:
    """`step(carry, given_t) -> (carry, out_t)` over the second axis of all arrays, whose first is the batch."""
    turned = lambda tree: jax.tree.map(lambda a: a.swapaxes(0, 1), tree)
    carry, out = precision.scan(step, carry, turned(given))
    return carry, turned(out)


def maxout(x: Float[Array, "batch time twice"]) -> Float[Array, "batch time units"]:
    """The larger of each two neighbours on the last axis (Goodfellow et al. 2013, 1302.4389)."""
    apart = x.reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    return largest([apart[..., 0], apart[..., 1]])


def reversed_tokens(x: Array, mask: Bool[Array, "batch source"] | None) -> Array:
    """x "batch source ..." with the real tokens of each row from the last to the first; padding stays on the right."""
    if mask is None:
        return jnp.flip(x, 1)
    place = jnp.arange(x.shape[1])
    length = jnp.sum(mask, axis=1, keepdims=True)
    place = jnp.where(place < length, length - 1 - place, place)
    return precision.picked(x, place)
