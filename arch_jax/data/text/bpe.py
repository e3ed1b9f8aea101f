"""Byte-level byte-pair encoding, trained and applied by the `tokenizers` library.

Source: Sennrich et al. 2016, arXiv:1508.07909; on bytes as in GPT-2 (Radford et al. 2019, section 2.2).
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence

import numpy as np

from arch_jax.data.files import directories
from arch_jax.data.text.tokenizer import Tokenizer, utf8
from arch_jax.errors import UsageError

# Everything that determines the result beside text and size. Part of the cache's key: a change here retrains.
_SETTINGS = {"version": 1, "pre_tokenizer": "gpt2", "min_frequency": 2}


class BytePairTokenizer(Tokenizer):
    """Byte-level BPE: any text has tokens, and decoding restores exactly the text.

    Args:
      size: the requested vocabulary.
      content: the content of a `tokenizer.json` file of the `tokenizers` library.
    """

    def __init__(self, size: int, content: dict):
        import tokenizers

        self.name = f"bpe:{size}"
        self._size, self._content = size, content
        try:
            self._library = tokenizers.Tokenizer.from_str(json.dumps(content))
            self._library.no_truncation()  # settings of the run that wrote the file
            self._library.no_padding()
            self._token_bytes = _token_bytes(self._library.get_vocab())
        except Exception as error:  # the library raises bare Exception
            raise UsageError(
                f"the content given for tokenizer {self.name!r} is not a tokenizer.json ({error})"
            ) from error

    @property
    def token_bytes(self) -> Sequence[bytes]:
        return self._token_bytes

    def encode(self, text: str) -> np.ndarray:
        return self.encode_all([text])[0]

    def encode_all(self, texts: Iterable[str]) -> list[np.ndarray]:
        texts = list(texts)
        for text in texts:
            utf8(text)  # the library's own error for a lone surrogate does not say where
        return [np.array(encoding.ids, np.int32) for encoding in self._library.encode_batch_fast(texts)]

    def to_json(self) -> dict:
        return {"kind": "bpe", "size": self._size, "tokenizer": self._content}


def trained(texts: Sequence[str], size: int) -> BytePairTokenizer:
    """The BPE tokenizer of these texts, trained on first use and kept in the data folder."""
    digest = hashlib.sha256(json.dumps({**_SETTINGS, "size": size}, sort_keys=True).encode())
    for text in texts:
        encoded = utf8(text)
        digest.update(b"%d\n" % len(encoded) + encoded)
    relative = f"tokenizers/bpe-{size}-{digest.hexdigest()[:32]}.json"

    found = _read(relative, size)
    if found is None:
        path = directories.writable_directory() / relative
        with directories.locked(path):
            found = _read(relative, size)  # another process may have trained it while this one waited
            if found is None:
                content = _train(texts, size)
                directories.write_atomically(path, json.dumps(content, ensure_ascii=False).encode())
                found = BytePairTokenizer(size, content)
    return found


def _read(relative: str, size: int) -> BytePairTokenizer | None:
    path = directories.find(relative)
    if path is None:
        return None
    try:
        return BytePairTokenizer(size, json.loads(path.read_bytes()))
    except (OSError, ValueError):  # a damaged cache is made anew (UsageError is a ValueError)
        return None


def _train(texts: Sequence[str], size: int) -> dict:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=_SETTINGS["min_frequency"],
        initial_alphabet=_byte_characters(),
        special_tokens=[],
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return json.loads(library.to_str())


def _token_bytes(vocabulary: dict[str, int]) -> tuple[bytes, ...]:
    to_byte = {character: byte for byte, character in enumerate(_byte_characters())}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tuple(bytes(to_byte[character] for character in token) for token in tokens)


@functools.cache
def _byte_characters() -> tuple[str, ...]:
    """The printable character that byte-level BPE writes for each byte, by byte (GPT-2's table).

    Bytes that Latin-1 prints stand for themselves; the others, in order, take the characters from U+0100 on.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))
