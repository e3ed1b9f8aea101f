"""Beam search for encoder-decoders: the source is encoded once, hypotheses grow together, one token a step."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from arch_jax.data.sequences.pairs import before_stop
from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.protocols import check_length, sequence_limit, source_vocabulary
from arch_jax.sampling.arguments import (
    check_encoder_decoder,
    check_variables,
    length_of,
    mask_of,
    pad_prompts,
    token_of,
    variables_of,
)
from arch_jax.sampling.base import Sampler, check_count, numbered
from arch_jax.scalars import real, whole


@component("beam_search", kind="sampler")
@dataclasses.dataclass(frozen=True)
class BeamSearch(Sampler):
    """Targets by beam search, of a given source or of validation pairs.

    A row is searched with its batch, which ends when no row can improve; the tokens are those of the row alone.

    Attributes:
      prompt: the source, as text; None takes sources of the validation data.
      beams: hypotheses kept; 1 is greedy.
      length_penalty: alpha of ((5 + length) / 6)^alpha, by which a hypothesis's log-probability is divided (1609.08144,
        equation 14).
      longest: tokens written at most, as a multiple of the longest target of the batch (of the source, for a prompt).
    """

    of_data: ClassVar[tuple[str, ...]] = ("start", "stop")

    prompt: str | None = None
    beams: int = 4
    length_penalty: float = 0.6
    longest: float = 1.25

    def __post_init__(self) -> None:
        if whole("beams", self.beams, "an integer of at least 1, which is greedy") < 1:
            raise UsageError(f"beams is {self.beams}; expected at least 1, which is greedy")
        check_penalty(self.length_penalty)
        if not 1 <= real("longest", self.longest, "a number of at least 1") < math.inf:
            raise UsageError(f"longest is {self.longest}; expected at least 1")

    def targets(
        self, task: Any, variables: Any, data: Any, batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[np.ndarray, Mapping[str, Any]]]:
        """The targets found for each batch: (tokens "batch length", the batch), compiled once for each shape."""
        for batch in batches:
            length = self._length(task.model, batch["labels"].shape[1])
            yield self._search(task.model, variables, data, batch["source"], batch["source_mask"], length), batch

    def _length(self, module: nn.Module, longest: int) -> int:
        length = max(1, round(self.longest * longest))
        room = sequence_limit(module)
        return length if room is None else min(length, room)

    def _search(self, module, variables, data, source, mask, length) -> np.ndarray:
        options = {"start": data.start, "stop": data.stop, "beams": self.beams, "length_penalty": self.length_penalty}
        source, mask = jnp.asarray(source), jnp.asarray(mask)
        tokens, _ = beam_search(module, variables, source, length, source_mask=mask, **options)
        return np.asarray(tokens)

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """Source, reference and target of `count` validation pairs; or the target of the prompt.

        Raises:
          UsageError: a prompt that is empty or that the data has no encoder for, more pairs than there are.
        """
        count = check_count(count)
        if self.prompt is not None:
            return numbered("text", [self._of_prompt(task.model, variables, data)] * count)
        batch = next(iter(data.validation()))
        few = {name: array[:count] for name, array in batch.items()}
        ((tokens, _),) = self.targets(task, variables, data, [few])
        lines = []
        for i, row in enumerate(tokens):
            if few["weights"][i].any():
                source = few["source"][i][np.asarray(few["source_mask"][i])]
                truth, found = before_stop(few["labels"][i], data.stop), before_stop(row, data.stop)
                lines += [
                    f"source    {data.decode(before_stop(source, data.stop))}",
                    f"reference {data.decode(truth)}",
                    f"model     {data.decode(found)}" + ("" if np.array_equal(found, truth) else "  [differs]"),
                    "",
                ]
        return {"text": "\n".join(lines)}

    def _of_prompt(self, module: nn.Module, variables: Any, data: Any) -> str:
        if data.encode is None:
            raise UsageError(f"the data {data.facts['source']!r} has no text to encode a prompt with; expected none")
        source = np.asarray([*data.encode(self.prompt), data.stop], np.int32)[None]
        if source.shape[1] == 1:
            raise UsageError("the prompt is empty; expected at least one character")
        length = self._length(module, source.shape[1])
        (tokens,) = self._search(module, variables, data, source, np.ones(source.shape, bool), length)
        return data.decode(before_stop(tokens, data.stop))


def beam_search(
    module: nn.Module,
    variables: Any,
    source: Int[Array, "... source"]
    | Int[np.ndarray, "... source"]
    | Sequence[int | Sequence[int] | Int[np.ndarray, "_"]],
    length: int,
    *,
    source_mask: Bool[Array, "batch source"] | Bool[np.ndarray, "batch source"] | None = None,
    start: int,
    stop: int | None,
    beams: int = 1,
    length_penalty: float | int = 0.0,
) -> tuple[Int[Array, "batch length"], Float[Array, "batch"]]:
    """The target that is found likeliest for each source; compiled once for each shape and setting.

    `beams` hypotheses are kept. One that ends is scored log p / ((5 + n) / 6)^length_penalty, n its tokens with `stop`
    (Wu et al. 2016, 1609.08144, equation 14), and the search of a row ends when no open one can come to beat its
    `beams` best. A row of which none ended within `length` tokens gives its likeliest open one.

    Args:
      module: an encoder-decoder: methods `encode`, `start` and `decode`.
      variables: of the module.
      source: "batch source" tokens, or a list of token lists of different lengths; a list of tokens, or an array
        "source", is one.
      length: tokens to write at most.
      source_mask: True at real tokens; None is all, or what a list of lists says.
      start: the token that every target begins with; it is not returned.
      stop: the token that ends a target; none writes `length` tokens.
      beams: hypotheses kept; 1 is greedy, and takes no length penalty.
      length_penalty: 0 for none; 0.6 in Attention Is All You Need.

    Returns:
      (tokens, after `stop` only `stop`; the scores).

    Raises:
      UsageError: an empty source, a token outside the vocabulary, a setting out of range, or a target longer than the
        model's positions.
    """
    check_encoder_decoder(module)
    check_variables(variables)
    vocabulary = module.vocabulary
    length = length_of(length, "write")
    beams = whole("beams", beams, f"an integer from 1 to {vocabulary}, the vocabulary")
    if not 1 <= beams <= vocabulary:
        raise UsageError(f"beams is {beams}; expected 1 to {vocabulary}, the vocabulary")
    penalty = check_penalty(length_penalty)
    penalty = penalty if beams > 1 else 0.0
    start = token_of("start", start, vocabulary)
    stop = None if stop is None else token_of("stop", stop, vocabulary)
    source, ids = pad_prompts(source, source_vocabulary(module), "source")
    mask = None if ids is None else ids > 0
    if source_mask is not None:
        given = mask_of(source_mask, source.shape)
        mask = given if mask is None else given & mask
    check_length(module, max(length, source.shape[1]))
    stop = -1 if stop is None else stop  # no token is -1
    with variables_of(module):
        return _search(module, variables, jnp.asarray(source), mask, length, start, stop, beams, penalty)


def check_penalty(penalty: Any) -> float:
    """The exponent alpha of the length penalty.

    Raises:
      UsageError: no number, or one that is negative or not finite.
    """
    expected = "at least 0, such as 0.6"
    penalty = real("length_penalty", penalty, f"a number of {expected}")
    if not 0 <= penalty < math.inf:
        raise UsageError(f"length_penalty is {penalty}; expected {expected}")
    return penalty


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6, 7, 8))
def _search(module, variables, source, source_mask, length, start, stop, beams, penalty):
    batch, vocabulary = source.shape[0], module.vocabulary
    module, variables = module.unrolled(variables)
    memory = module.apply(variables, source, source_mask, method="encode")
    state = module.apply(variables, memory, source_mask, length, method="start")
    first = jnp.full((batch, 1), start, source.dtype)
    logits, state = module.apply(variables, first, state, method="decode")
    # All hypotheses of a row are the same so far: they are told apart from here on, lying side by side in the batch.
    state = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0), state)
    logits = jnp.repeat(logits[:, 0], beams, axis=0)
    precise = jnp.promote_types(logits.dtype, jnp.float32)

    def normed(log_p, n):
        return log_p / ((5 + n) / 6) ** penalty

    def expand(n, open_p, open_tokens, done_score, done_tokens, logits):
        """Hypotheses of n tokens become those of n + 1."""
        log_p = jax.nn.log_softmax(logits.astype(precise)).reshape(batch, beams, vocabulary)
        every = (open_p[:, :, None] + log_p).reshape(batch, beams * vocabulary)
        # Twice as many as there are beams: even if each beam's likeliest token is `stop`, enough stay open.
        best, where = jax.lax.top_k(every, 2 * beams)
        parent, token = where // vocabulary, (where % vocabulary).astype(open_tokens.dtype)
        tokens = jnp.take_along_axis(open_tokens, parent[:, :, None], axis=1).at[:, :, n].set(token)
        ended = token == stop

        counts = ended & (jnp.arange(2 * beams) < beams)  # one that falls behind the beam would never have been seen
        scores = jnp.concatenate([done_score, jnp.where(counts, normed(best, n + 1), -jnp.inf)], axis=1)
        done_score, chosen = jax.lax.top_k(scores, beams)
        both = jnp.concatenate([done_tokens, tokens], axis=1)
        done_tokens = jnp.take_along_axis(both, chosen[:, :, None], axis=1)

        open_p, chosen = jax.lax.top_k(jnp.where(ended, -jnp.inf, best), beams)
        open_tokens = jnp.take_along_axis(tokens, chosen[:, :, None], axis=1)
        parent = jnp.take_along_axis(parent, chosen, axis=1)
        return n + 1, open_p, open_tokens, done_score, done_tokens, parent

    def goes_on(carry):
        n, open_p, _, done_score, *_ = carry
        # log p only falls as a hypothesis grows, and the divisor is largest at the end: no more can come of one.
        possible = normed(jnp.max(open_p, axis=1), length)
        return (n < length) & jnp.any(possible > jnp.min(done_score, axis=1))

    def step(carry):
        n, open_p, open_tokens, done_score, done_tokens, parent, state = carry
        rows = (parent + beams * jnp.arange(batch)[:, None]).reshape(-1)
        state = jax.tree.map(lambda x: x[rows], state)
        last = jax.lax.dynamic_index_in_dim(open_tokens, n - 1, axis=2, keepdims=False).reshape(-1, 1)
        logits, state = module.apply(variables, last, state, method="decode")
        return *expand(n, open_p, open_tokens, done_score, done_tokens, logits[:, 0]), state

    filler = max(stop, 0)
    nothing = jnp.full((batch, beams, length), filler, source.dtype)
    one_open = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf).astype(precise)  # copies are not hypotheses
    none_done = jnp.full((batch, beams), -jnp.inf, precise)
    begun = expand(0, jnp.broadcast_to(one_open, (batch, beams)), nothing, none_done, nothing, logits)
    n, open_p, open_tokens, done_score, done_tokens, *_ = jax.lax.while_loop(goes_on, step, (*begun, state))

    ended = done_score[:, 0] > -jnp.inf
    tokens = jnp.where(ended[:, None], done_tokens[:, 0], open_tokens[:, 0])
    return tokens, jnp.where(ended, done_score[:, 0], normed(open_p[:, 0], n))
