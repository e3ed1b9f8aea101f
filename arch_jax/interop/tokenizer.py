"""The tokenizer of a checkpoint, as the `tokenizers` library reads it."""

from os import PathLike
from typing import TYPE_CHECKING

from arch_jax.errors import RunError, UsageError
from arch_jax.interop.safetensors import folder_of, plain_file
from arch_jax.interop.strict_json import read_object

if TYPE_CHECKING:
    import tokenizers

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(directory: str | PathLike) -> "tokenizers.Tokenizer":
    """The tokenizer in a folder as transformers' `save_pretrained` writes it.

        tokenizer = arch_jax.load_tokenizer("path/to/bert")
        tokens = tokenizer.encode("a sentence", "another one")      # .ids, .type_ids, .attention_mask
        text = tokenizer.decode(tokens.ids)

    Byte-pair encoding, WordPiece and unigram models alike, with the special tokens that their post-processor adds.
    Texts are neither cut nor padded, whatever the file says of the run that wrote it; for that there is
    `tokenizer.enable_truncation(512)`.

    Args:
      directory: holds tokenizer.json; nothing is downloaded.

    Raises:
      UsageError: no such folder, or it has no tokenizer.json (older checkpoints have vocab files only: transformers'
        `AutoTokenizer.from_pretrained(...).save_pretrained(...)` writes one).
      RunError: the file is damaged or can't be read.
    """
    import tokenizers

    folder = folder_of(directory)
    if not folder.is_dir():
        raise UsageError(f"{str(folder)!r} is not a folder; expected one on this machine with {TOKENIZER_FILE}")
    if not (folder / TOKENIZER_FILE).exists():
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".txt", ".model", ".bpe") or "vocab" in p.name)
        beside = f"; it has {others[0]!r}, from which transformers' AutoTokenizer writes one" if others else ""
        raise UsageError(f"{str(folder)!r} has no {TOKENIZER_FILE}{beside}")
    path = plain_file(folder, TOKENIZER_FILE)
    read_object(path)  # bounded, and told apart from what the library would call anything
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise RunError(f"{TOKENIZER_FILE} in {str(folder)!r} is not a tokenizer ({error})") from error
    # The file also holds what its last run cut and padded to, which says nothing of the tokenizer.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
