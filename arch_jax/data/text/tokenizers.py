"""Tokenizers by name and from a run's JSON: bytes, characters, byte-level byte-pair encoding."""

import json
from collections.abc import Sequence

from arch_jax.data.text import bpe
from arch_jax.data.text.tokenizer import ByteTokenizer, CharacterTokenizer, Tokenizer
from arch_jax.errors import UsageError, unknown

TOKENIZERS: dict[str, str] = {
    "bytes": "the 256 values of UTF-8's bytes",
    "characters": "the different characters of the whole corpus, sorted",
    "bpe:SIZE": "byte-level byte-pair encoding with SIZE tokens, trained on the training text",
}


def check_tokenizer(name: str) -> None:
    """Raises UsageError, with the nearest names, where `name` is not the name of a tokenizer."""
    if not isinstance(name, str):
        raise UsageError(f"a tokenizer is a name such as 'bytes' or 'bpe:1024', not {name!r}")
    if name.startswith("bpe:"):
        _bpe_size(name)
    elif name not in ("bytes", "characters"):
        raise unknown("tokenizer", name, TOKENIZERS)


def _bpe_size(name: str) -> int:
    given = name.removeprefix("bpe:")
    if not (given.isascii() and given.isdigit()):
        raise UsageError(f"tokenizer {name!r} needs a size after 'bpe:'; expected a whole number such as 'bpe:1024'")
    if len(given) > 9:
        raise UsageError(f"tokenizer {name!r} is beyond any text; expected a size such as in 'bpe:1024'")
    if int(given) < 257:
        raise UsageError(
            f"tokenizer {name!r} has no room for a merge beside the 256 bytes; expected at least 257, as in 'bpe:1024'"
        )
    return int(given)


def tokenizer(name: str, corpus_texts: Sequence[str], training_texts: Sequence[str] | None = None) -> Tokenizer:
    """Makes a tokenizer for a corpus.

    Args:
      name: "bytes"; "characters"; or "bpe:SIZE", SIZE at least 257. If a text runs out of pairs that occur twice, the
        BPE vocabulary is smaller than requested: read `vocabulary`.
      corpus_texts: all documents; "characters" takes its vocabulary from them.
      training_texts: the documents that BPE is trained on; `corpus_texts` by default.

    Raises:
      UsageError: an unknown name or a wrong size.
    """
    check_tokenizer(name)
    if name == "bytes":
        return ByteTokenizer()
    if name == "characters":
        return CharacterTokenizer("".join(sorted(set().union(*map(set, corpus_texts)))))
    return bpe.trained(corpus_texts if training_texts is None else training_texts, _bpe_size(name))


def tokenizer_from_json(content: dict) -> Tokenizer:
    """The tokenizer that `Tokenizer.to_json` described; equal to it.

    Raises:
      UsageError: `content` does not describe a tokenizer.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    try:
        if kind == "bytes":
            return ByteTokenizer()
        if kind == "characters":
            return CharacterTokenizer(content["characters"])
        if kind == "bpe":
            return bpe.BytePairTokenizer(content["size"], content["tokenizer"])
    except (KeyError, TypeError) as error:
        shown = json.dumps(content, default=str)[:80]
        raise UsageError(
            f"{shown} does not describe a tokenizer of kind {kind!r} ({error}); expected what to_json gave"
        ) from error
    raise unknown("kind of tokenizer", str(kind), ("bytes", "characters", "bpe"))
