"""The tokenizer base class, and the tokenizers that need no training: bytes and characters.

Each token stands for a fixed string of bytes. That gives every tokenizer the same `decode`, and `byte_lengths`, by
which a loss per token becomes one per byte: the number that compares models with different tokenizers.
"""

import abc
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from arch_jax.errors import UsageError

_REPLACEMENT = "\ufffd".encode()


class Tokenizer(abc.ABC):
    """Common interface of all tokenizers.

    Attributes:
      name: as `tokenizer` takes it.
      vocabulary: the number of token ids, which run from 0 to vocabulary - 1.
      byte_lengths: int32 "vocabulary"; UTF-8 bytes that each token stands for. Summed over the tokens of a text, it
        is the text's length in UTF-8.
    """

    name: str

    @property
    @abc.abstractmethod
    def token_bytes(self) -> Sequence[bytes]:
        """The bytes that each token stands for, by id."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """The token ids of a text, int32.

        Raises:
          UsageError: a character that has no token (for `characters`), or no UTF-8 form (half a surrogate pair).
        """

    @abc.abstractmethod
    def to_json(self) -> dict:
        """Everything `from_json` needs to make an equal tokenizer, as JSON values."""

    def encode_all(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of each text."""
        return [self.encode(text) for text in texts]

    @property
    def vocabulary(self) -> int:
        return len(self.token_bytes)

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        return np.array([len(token) for token in self.token_bytes], np.int32)

    def decode(self, ids) -> str:
        """The text of token ids. Never fails: bytes that are not UTF-8, and ids outside the vocabulary, give U+FFFD.

        Args:
          ids: integers, as an array of any shape (taken in row order) or a sequence.
        """
        table = self.token_bytes
        known = range(len(table))
        values = np.asarray(ids).astype(np.int64).reshape(-1).tolist()
        return b"".join(table[i] if i in known else _REPLACEMENT for i in values).decode("utf-8", "replace")

    def __eq__(self, other) -> bool:
        return isinstance(other, Tokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.name, self.vocabulary))

    def __repr__(self) -> str:
        return f"<tokenizer {self.name!r}, vocabulary {self.vocabulary:,}>"


class ByteTokenizer(Tokenizer):
    """A text's UTF-8 bytes are its tokens."""

    name = "bytes"
    token_bytes = tuple(bytes([value]) for value in range(256))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)

    def to_json(self) -> dict:
        return {"kind": "bytes"}


class CharacterTokenizer(Tokenizer):
    """One token a character. `characters` holds the vocabulary, sorted, each once."""

    name = "characters"

    def __init__(self, characters: str):
        self.characters = "".join(sorted(set(characters)))
        utf8(self.characters)
        self._points = _code_points(self.characters)

    @functools.cached_property
    def token_bytes(self) -> Sequence[bytes]:
        return tuple(character.encode() for character in self.characters)

    def encode(self, text: str) -> np.ndarray:
        points = _code_points(text)
        ids = np.searchsorted(self._points, points)
        known = ids < len(self._points)
        known[known] = self._points[ids[known]] == points[known]
        if not known.all():
            position = int(np.argmin(known))
            raise UsageError(
                f"character {text[position]!r} at position {position} is not among the {self.vocabulary} characters "
                f"of this tokenizer's corpus; expected only those, or tokenizer 'bytes', which takes any text"
            )
        return ids.astype(np.int32)

    def to_json(self) -> dict:
        return {"kind": "characters", "characters": self.characters}


def utf8(text: str) -> bytes:
    """The UTF-8 bytes of a text; a UsageError that names the character where there are none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"character {text[error.start]!r} at position {error.start} is half a surrogate pair, which UTF-8 cannot "
            f"express; expected text of whole characters"
        ) from error


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
