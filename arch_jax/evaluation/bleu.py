"""Translations of the test part: exact ones, and BLEU by sacrebleu."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from arch_jax.data.sequences.pairs import before_stop
from arch_jax.errors import UsageError
from arch_jax.evaluation.base import Measure
from arch_jax.fields import component


@component("translation", kind="measure")
@dataclasses.dataclass(frozen=True)
class Translation(Measure):
    """Beam search over the whole test part, with the settings of the run's sampler.

    "exact_beam" is the share of sequences without a mistake; where the data has reference texts, "bleu" is the corpus's
    BLEU, 0 to 100, on text that is not tokenized (sacrebleu's own tokenizer "13a").

    Source of BLEU: M. Post, "A Call for Clarity in Reporting BLEU Scores", 2018, arXiv 1804.08771.
    """

    def check(self, task: Any, sampler: Any, data: Any) -> None:
        """Refuses a sampler that finds no targets, and references without sacrebleu to score them."""
        super().check(task, sampler, data)
        if not callable(getattr(sampler, "targets", None)):
            raise UsageError(
                f"the measure 'translation' needs a sampler that finds targets, and it is {type(sampler).__name__}; "
                "expected 'beam_search'"
            )
        if data.references is not None:
            sacrebleu()

    def __call__(self, task: Any, variables: Any, sampler: Any, data: Any, key: jax.Array) -> dict[str, float]:
        exact, found = [], []
        for tokens, batch in sampler.targets(task, variables, data, data.test()):
            for row, labels, weights in zip(tokens, batch["labels"], batch["weights"]):
                if weights.any():
                    found.append(before_stop(row, data.stop))
                    exact.append(np.array_equal(found[-1], before_stop(labels, data.stop)))
        scores = {"exact_beam": float(np.mean(exact))}
        if data.references is not None:
            texts = [data.decode(tokens).strip() for tokens in found]
            scores["bleu"] = bleu(texts, data.references, lowercase=data.lowercase)
        return scores


def bleu(translations: Sequence[str], references: Sequence[str], lowercase: bool = False) -> float:
    """Corpus BLEU of sentences against one reference each, 0 to 100, by sacrebleu with its defaults.

    Raises:
      UsageError: sacrebleu is not installed, or there are not as many of one as of the other.
    """
    if len(translations) != len(references):
        raise UsageError(
            f"there are {len(translations)} translations of {len(references)} references; expected as many of both"
        )
    return float(sacrebleu().corpus_bleu(list(translations), [list(references)], lowercase=lowercase).score)


def sacrebleu() -> Any:
    """The library.

    Raises:
      UsageError: it is not installed.
    """
    try:
        import sacrebleu as library
    except ImportError:
        raise UsageError(
            "BLEU needs sacrebleu, which is not installed; install it with pip install 'arch-jax[translation]'"
        ) from None
    return library
