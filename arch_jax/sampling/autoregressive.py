"""Generation: prefill the prompt, then one token a step through the state that the model carries."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.ops.token_sampling import check_sampling, sample
from arch_jax.protocols import check_head, unrolled
from arch_jax.sampling.arguments import (
    check_decoder,
    check_key,
    check_variables,
    length_of,
    pad_prompts,
    token_of,
    variables_of,
)
from arch_jax.sampling.base import Sampler, check_count, numbered


@component("autoregressive", kind="sampler")
@dataclasses.dataclass(frozen=True)
class Autoregressive(Sampler):
    """Continuations of a prompt, token by token.

    Attributes:
      prompt: text to continue; at least one character.
      length: tokens to add.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the k likeliest tokens are drawn from; None takes all.
      top_p: only the smallest set of tokens whose probability reaches p is drawn from; None takes all.
    """

    of_model: ClassVar[tuple[str, ...]] = ("initial_state", "vocabulary")
    of_data: ClassVar[tuple[str, ...]] = ("tokenizer",)

    prompt: str = "\n"
    length: int = 400
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None

    uses_data: ClassVar[bool] = False

    def __post_init__(self) -> None:
        length_of(self.length, "generate")
        check_sampling(self.temperature, self.top_k, self.top_p)

    def check(self, task: Any, data: Any) -> None:
        """Refuses an empty prompt, and one with characters outside the tokenizer's vocabulary."""
        super().check(task, data)
        self._tokens(data)

    def _tokens(self, data: Any) -> Any:
        if not self.prompt:
            raise UsageError("the prompt is empty; expected at least one character")
        return data.tokenizer.encode(self.prompt)

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """`count` texts, each the prompt and its continuation.

        Raises:
          UsageError: an empty prompt, characters outside the vocabulary, or a text longer than the model's positions.
        """
        count = check_count(count)
        options = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        new = generate(task.model, variables, [self._tokens(data)] * count, self.length, key, **options)
        return numbered("text", [self.prompt + data.tokenizer.decode(row) for row in jax.device_get(new)])


def generate(
    module: nn.Module,
    variables: Any,
    prompt: Int[Array, "... time"] | Int[np.ndarray, "... time"] | Sequence[int | Sequence[int] | Int[np.ndarray, "_"]],
    length: int,
    key: jax.Array | None = None,
    *,
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: int | None = None,
) -> Int[Array, "batch length"]:
    """Continues each prompt by `length` tokens; compiled once for each shape and setting.

    The tokens are the same as those from recomputing the whole sequence at each step: token n of row b is drawn with
    `fold_in(fold_in(key, n), b)` from the model's distribution after all before it.

    Args:
      module: a decoder that carries a state: `initial_state(batch, length)` and `apply(..., state=)`.
      variables: of the module.
      prompt: "batch time" tokens, or a list of token lists of different lengths, each with one token at least; one list
        of tokens, or an array "time", is one prompt.
      length: how many tokens to add.
      key: for sampling; may be none where `temperature` is 0.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: only the k likeliest tokens are drawn; none is all.
      top_p: only the smallest set of tokens whose probability reaches p is drawn; none is all.
      stop: after this token, one id, a row goes on with `stop` only.

    Returns:
      The new tokens, without the prompt.

    Raises:
      UsageError: a module that does not decode, variables or a key that are none, an empty prompt, a token that is no
        integer or outside the vocabulary, a sequence longer than the model's positions, or settings out of range.
    """
    check_decoder(module)
    check_variables(variables)
    check_head(module)
    temperature, top_k, top_p = check_sampling(temperature, top_k, top_p)
    length = length_of(length, "generate")
    tokens, segment_ids = pad_prompts(prompt, module.vocabulary)
    if key is None:
        if temperature != 0:
            raise UsageError(f"temperature {temperature} draws at random and needs a key; give key= or temperature=0")
        key = jax.random.key(0)
    check_key(key)
    top_k = None if top_k is None else min(top_k, module.vocabulary)
    stop = None if stop is None else token_of("stop", stop, module.vocabulary)
    with variables_of(module):
        return _generate(module, variables, tokens, segment_ids, key, length, temperature, top_k, top_p, stop)


def _check_decoder(module: nn.Module, tokens: Any, logits: Any, before: Any, after: Any) -> None:
    """The contract of decoding: logits of every token, and a state that keeps its structure, shapes and dtypes."""
    name = type(module).__name__
    try:
        chex.assert_shape(logits, (*tokens.shape, module.vocabulary))
    except AssertionError as problem:
        raise UsageError(
            f"{name} gives logits {logits.shape} for tokens {tokens.shape}; expected "
            f"{(*tokens.shape, module.vocabulary)}, batch time vocabulary"
        ) from problem
    try:
        chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    except (AssertionError, ValueError) as problem:
        raise UsageError(
            f"{name} returns a state unlike the one it was given: {' '.join(str(problem).split())[:300]}"
        ) from problem


@functools.partial(jax.jit, static_argnums=(0, 5, 6, 7, 8, 9))
def _generate(module, variables, tokens, segment_ids, key, length, temperature, top_k, top_p, stop):
    batch, time = tokens.shape
    module, variables = unrolled(module, variables)
    state = module.initial_state(batch, time + length - 1)
    first_state = state
    logits, state = module.apply(variables, tokens, segment_ids=segment_ids, state=state)
    _check_decoder(module, tokens, logits, first_state, state)
    last = jnp.full((batch,), time - 1) if segment_ids is None else segment_ids.sum(axis=1) - 1
    logits = jnp.take_along_axis(logits, last[:, None, None], axis=1)[:, 0]

    def draw(n, logits):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(key, n)))(jnp.arange(batch))
        one = lambda k, row: sample(k, row[None], temperature=temperature, top_k=top_k, top_p=top_p)[0]
        return jax.vmap(one)(keys, logits) if temperature else sample(key, logits, temperature=0.0)

    def step(carry, n):
        token, state = carry
        logits, state = module.apply(variables, token[:, None], state=state)
        new = draw(n, logits[:, 0])
        if stop is not None:
            new = jnp.where(token == stop, stop, new)
        return (new, state), new

    first = draw(0, logits)
    _, rest = jax.lax.scan(step, (first, state), jnp.arange(1, length))
    return jnp.concatenate([first[:, None], rest.T], axis=1)
