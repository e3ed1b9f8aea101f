"""Masked tokens filled in by an encoder."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from arch_jax.errors import UsageError
from arch_jax.fields import component
from arch_jax.sampling.base import Sampler, check_count, numbered

MASK = "[MASK]"


@component("fill_mask", kind="sampler")
@dataclasses.dataclass(frozen=True)
class FillMask(Sampler):
    """The likeliest tokens at masked places, of a text or of validation rows.

    Attributes:
      prompt: text with [MASK] in it; None takes validation rows under the objective's own corruption.
    """

    of_objective: ClassVar[tuple[str, ...]] = ("corrupted",)

    prompt: str | None = None

    def check(self, task: Any, data: Any) -> None:
        """Refuses a prompt without [MASK], or for data without a tokenizer."""
        super().check(task, data)
        if self.prompt is not None:
            self._encoded(task, data)

    def __call__(self, task: Any, variables: Any, data: Any, key: jax.Array, count: int = 1) -> dict[str, Any]:
        """The prompt with its masks filled in; or `count` rows, each with what the model gives for its chosen tokens.

        Raises:
          UsageError: a prompt without [MASK], or for data without a tokenizer.
        """
        count = check_count(count)
        if self.prompt is not None:
            return numbered("text", [self._filled(task, variables, data)] * count)
        batch = next(iter(data.validation()))
        seen, chosen = task.corrupted(batch, task.fixed_key(batch))
        logits = task.outputs(variables, *task.arguments({**batch, "tokens": seen}))["logits"]
        guesses = np.asarray(jnp.argmax(logits, axis=-1))
        seen, chosen, tokens = map(np.asarray, (seen, chosen, batch["tokens"]))
        real = task.real(batch)
        lines = []
        for i in range(min(count, len(tokens))):
            row = seen[i] if real is None else seen[i][np.asarray(real)[i]]
            lines.append(decoded(data, row))
            for t in np.flatnonzero(chosen[i]):
                guess, truth = decoded(data, guesses[i, t : t + 1]), decoded(data, tokens[i, t : t + 1])
                lines.append(f"  {t}: {guess!r}" + ("" if guess == truth else f" (is {truth!r})"))
        return {"text": "\n".join(lines) + "\n"}

    def _encoded(self, task: Any, data: Any) -> list[int]:
        if data.tokenizer is None:
            raise UsageError("the data has no tokenizer to encode a prompt with; expected prompt=none")
        pieces = self.prompt.split(MASK)
        if len(pieces) < 2:
            raise UsageError(f"the prompt {self.prompt!r} holds no {MASK}; expected one at least")
        joined = list(data.tokenizer.encode(pieces[0]))
        for piece in pieces[1:]:
            joined += [task.mask_id, *data.tokenizer.encode(piece)]
        return list(map(int, joined))

    def _filled(self, task: Any, variables: Any, data: Any) -> str:
        tokens = np.asarray(self._encoded(task, data), np.int32)
        logits = task.outputs(variables, *task.arguments({"tokens": tokens[None]}))["logits"][0]
        # A token that stands for no text is no answer.
        logits = np.asarray(logits)[:, : data.tokenizer.vocabulary]
        filled = np.where(tokens == task.mask_id, logits.argmax(-1), tokens)
        return data.tokenizer.decode(filled)


def decoded(data: Any, ids: Any) -> str:
    """Tokens as text, with [MASK] where the tokenizer has no such token."""
    if data.decode is not None:
        return data.decode(ids)
    ids, tokenizer = np.asarray(ids), data.tokenizer
    borders = [-1, *np.flatnonzero(ids >= tokenizer.vocabulary), len(ids)]
    return MASK.join(tokenizer.decode(ids[a + 1 : b]) for a, b in itertools.pairwise(borders))
