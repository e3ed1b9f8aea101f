"""Text sources by name. Each gives its documents, by random access, and a hash of their content.

What a source holds may differ between machines (`pydocs` and `pysource` differ by Python version), so a run records the
hash beside the name.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence

from arch_jax.data.files import walk
from arch_jax.data.files.directories import data_directory
from arch_jax.data.text.reading import read_text
from arch_jax.errors import UsageError, nearest, unknown

__all__ = ["SOURCES", "Documents", "check_text_source", "data_directory", "documents"]

# Suffixes of the files in a folder that count as text. A file given by name may have any name.
_TEXT_SUFFIXES = """
.txt .text .md .markdown .rst .tex .org .csv .tsv .json .jsonl .yaml .yml .toml .ini .cfg .html .htm .xml .css .js .ts
.py .pyi .ipynb .c .h .cc .cpp .hpp .cu .rs .go .java .kt .scala .jl .r .rb .pl .lua .hs .ml .sh .sql
"""
TEXT_SUFFIXES = frozenset(_TEXT_SUFFIXES.split())


@dataclasses.dataclass(frozen=True)
class Documents(Sequence):
    """The documents of a source: a sequence of str.

    Attributes:
      name: the source's name, as given to `documents`.
      texts: the documents.
      notes: sentences on what was left out.
      sha256: hexadecimal SHA-256 over all texts, each preceded by its length in UTF-8 bytes.
    """

    name: str
    texts: tuple[str, ...] = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()
    sha256: str = dataclasses.field(init=False)

    def __post_init__(self):
        digest = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode()
            # The length separates: moving a character from one document to the next changes the hash.
            digest.update(b"%d\n" % len(encoded))
            digest.update(encoded)
        object.__setattr__(self, "sha256", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index):
        return self.texts[index]


def _pydocs() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _pysource() -> list[str]:
    from arch_jax.data.files.tfds_builders import python_source

    return python_source()


def _tinyshakespeare() -> list[str]:
    from arch_jax.data.text.tinyshakespeare import tinyshakespeare

    return [tinyshakespeare()]


_READERS: dict[str, Callable[[], list[str]]] = {
    "pydocs": _pydocs,
    "pysource": _pysource,
    "tinyshakespeare": _tinyshakespeare,
}

SOURCES: dict[str, str] = {
    "pydocs": "the topics of Python's own help, English, 0.5 MB; comes with Python",
    "pysource": "the source of Python's standard library, 11 MB; comes with Python, prepared once by TFDS",
    "tinyshakespeare": "40,000 lines of Shakespeare, 1.1 MB; downloaded once (karpathy/char-rnn)",
    "text:PATH": "your own text: a file in UTF-8, or a folder whose text files are one document each",
}


def check_text_source(source: str) -> None:
    """Raises UsageError, with the nearest names, where `source` is not the name of a source. Reads nothing."""
    if not isinstance(source, str):
        raise UsageError(f"a source is a name such as 'pydocs' or 'text:PATH', not {source!r}")
    if source.startswith("text:"):
        if not source.removeprefix("text:").strip():
            raise UsageError("source 'text:' names no file or folder; expected 'text:PATH'")
    elif source not in _READERS:
        if os.path.exists(source):
            raise UsageError(f"unknown source {source!r}; to read that file or folder, write {'text:' + source!r}")
        raise unknown("source", source, SOURCES)


def documents(source: str) -> Documents:
    """Reads a source.

    Args:
      source: a name from `SOURCES`; `text:PATH` reads a file as one document (see `reading.text_of`), or a folder with
        its sub-folders (see `walk.files`) with each text file a document, in the order of their paths.

    Returns:
      The documents, none of them empty.

    Raises:
      UsageError: an unknown name; a file that is missing, unreadable, empty, or not text; a folder without text files.
      RunError: a download failed, or the downloaded file is not the expected one.
    """
    check_text_source(source)
    if source.startswith("text:"):
        return Documents(source, *_read_path(source.removeprefix("text:")))
    return Documents(source, tuple(_READERS[source]()))


def _read_path(given: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The texts of a file or folder, and a note on what was left out."""
    path = pathlib.Path(os.path.expanduser(given))
    skipped = walk.Skipped()
    if os.path.isdir(path):
        files, skipped = walk.files(path, TEXT_SUFFIXES)
        if not files:
            raise UsageError(f"folder {given!r} has no text files; expected files such as *.txt, *.md or *.py")
        texts = [text for text in map(read_text, files) if text.strip()]
        if not texts:
            raise UsageError(f"folder {given!r} has only empty text files ({len(files)} of them); expected text")
        skipped["empty"] += len(files) - len(texts)
    elif os.path.isfile(path):
        texts = [read_text(path)]
        if not texts[0].strip():
            raise UsageError(f"file {given!r} is empty; expected UTF-8 text")
    elif os.path.exists(path):
        raise UsageError(f"{given!r} is a device or pipe; expected a UTF-8 text file or a folder of them")
    else:
        siblings = [str(path.parent / name) for name in walk.names(path.parent)]
        raise UsageError(f"there is no file or folder {given!r}{nearest(given, siblings)}")
    return tuple(texts), walk.note(f"'text:{walk.readable(given)}'", skipped)
