"""A checkpoint's folder of another library in the place of a run: what a published language model writes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from arch_jax.data.base import Corpus
from arch_jax.errors import UsageError
from arch_jax.interop import load_pretrained, load_tokenizer
from arch_jax.interop.pretrained import is_adapter
from arch_jax.objectives.next_token import NextToken
from arch_jax.objectives.sequence_to_sequence import SequenceToSequence
from arch_jax.protocols import takes_state, vocabulary, writes_targets
from arch_jax.sampling.base import check_count
from arch_jax.train.restore import sampler_with, seed_of
from arch_jax.train.workdir import of_another_library


class _Text:
    """A tokenizer of the `tokenizers` library, as samplers use one.

    Args:
      library: as `load_tokenizer` gives it.
      ends: ids of tokens after which there is no more text.
    """

    def __init__(self, library: Any, ends: Sequence[int]) -> None:
        self._library, self._ends = library, frozenset(ends)
        self.vocabulary = library.get_vocab_size()
        # Decoded behind a token, since what begins a text may lose its space.
        self._before = library.encode("a", add_special_tokens=False).ids

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a prompt, with those that the tokenizer puts before a text and without those that end it."""
        ids = self._library.encode(text).ids
        while ids and ids[-1] in self._ends:
            ids.pop()
        return np.array(ids, np.int32)

    def source(self, text: str) -> list[int]:
        """Token ids of a text alone."""
        return self._library.encode(text, add_special_tokens=False).ids

    def whole(self, ids: Any) -> str:
        """The text of token ids."""
        return self._library.decode([int(token) for token in ids])

    def decode(self, ids: Any) -> str:
        """The text that token ids add to the one before them, up to the first that ends it."""
        ids = [int(token) for token in ids]
        ids = ids[: next((i for i, token in enumerate(ids) if token in self._ends), len(ids))]
        return self._library.decode([*self._before, *ids])[len(self._library.decode(self._before)) :]


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
    """A language model from a folder of another library.

    Attributes:
      path: the folder.
      task: an objective of the model, for samplers.
      variables: of the model.
      data: what samplers ask of a corpus: the tokenizer, and the tokens that begin and end a target.
    """

    path: Path
    task: Any
    variables: Any
    data: Any

    def sample(
        self, seed: int = 0, count: int = 1, settings: Mapping[str, Any] = MappingProxyType({})
    ) -> dict[str, Any]:
        """Continuations of a prompt by a decoder, or the target that an encoder-decoder finds for it.

        Args:
          seed: of everything random.
          count: how many.
          settings: of the sampler `autoregressive` or `beam_search`, such as {"prompt": "Once", "temperature": 0.5}.

        Returns:
          Name -> text.

        Raises:
          UsageError: a setting that the sampler does not have or that is out of range; an encoder-decoder without a
            prompt.
        """
        seed = seed_of(seed)
        sampler = sampler_with(self.task.sampler, settings)
        if writes_targets(self.task.model) and sampler.prompt is None:
            raise UsageError(f"the model in {self.path} writes a target for a source; expected --prompt TEXT")
        sampler.check(self.task, self.data)
        return sampler(self.task, self.variables, self.data, jax.random.key(seed), check_count(count))


def is_checkpoint(path: Path | str) -> bool:
    """True for a folder that another library wrote, a PEFT adapter's among them; false for a run's."""
    folder = Path(path)
    return of_another_library(folder) is not None or is_adapter(folder)


def open_checkpoint(path: Path | str) -> CheckpointFolder:
    """Opens a language model that another library wrote.

    Raises:
      UsageError: a checkpoint that is not supported, or of a model that writes no text; no tokenizer.json.
      RunError: a file is damaged.
    """
    folder = Path(path)
    module, variables = load_pretrained(folder)
    decoder = takes_state(module) and vocabulary(module) is not None
    if not decoder and not writes_targets(module):
        raise UsageError(
            f"{folder} holds a {type(module).__name__}, which writes no text; expected a decoder or an "
            "encoder-decoder; arch_jax.load_pretrained gives what this one computes"
        )
    facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ends = facts.get("eos_token_id")
    ends = [] if ends is None else list(ends) if isinstance(ends, list) else [ends]
    text, data = _Text(load_tokenizer(folder), ends), Corpus()
    if decoder:
        data.tokenizer = text
        return CheckpointFolder(folder, NextToken().with_model(module), variables, data)
    data.facts = {"source": str(folder)}
    data.start, data.stop = facts.get("decoder_start_token_id"), (ends or [None])[0]
    for name, value in (("decoder_start_token_id", data.start), ("eos_token_id", data.stop)):
        if value is None:
            raise UsageError(f"config.json in {folder} has no {name}, with which a target begins or ends; expected one")
    data.encode, data.decode = text.source, text.whole
    return CheckpointFolder(folder, SequenceToSequence().with_model(module), variables, data)
