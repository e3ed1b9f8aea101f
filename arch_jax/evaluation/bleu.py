"""BLEU of translations, by sacrebleu."""

from collections.abc import Sequence
from typing import Any

from arch_jax.errors import UsageError


def bleu(said: Sequence[str], references: Sequence[str], lowercase: bool = False) -> float:
    """Corpus BLEU of sentences against one reference each, 0 to 100, by sacrebleu with its defaults.

    Raises:
      UsageError: sacrebleu is not installed, or there are not as many of one as of the other.
    """
    if len(said) != len(references):
        raise UsageError(
            f"there are {len(said)} translations of {len(references)} references; expected as many of both"
        )
    return float(sacrebleu().corpus_bleu(list(said), [list(references)], lowercase=lowercase).score)


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
