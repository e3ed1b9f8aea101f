"""The one reader of text files: bytes as text, or one sentence that names the byte which is none."""

import codecs
from pathlib import Path

from arch_jax.errors import UsageError

# Byte order marks; UTF-32's first, since the little one begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def read_text(path: Path) -> str:
    """The text of a file; see `text_of`.

    Raises:
      UsageError: it can't be read, or is not text.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror or error}; expected a readable text file"
        ) from error
    return text_of(content, str(path))


def text_of(content: bytes, where: str) -> str:
    """The text that a file's bytes stand for, as Python's text mode reads it.

    It is UTF-8, or what its byte order mark says (UTF-8, UTF-16, UTF-32); the mark is no part of the text. Line ends
    are "\\n", also where the file has "\\r\\n" or "\\r".

    Args:
      content: of the file.
      where: its name in messages.

    Raises:
      UsageError: it is in another encoding, or not text; with the first byte that tells, and its line.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    wrong = None
    try:
        text = content[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        wrong = len(mark) + error.start
        text = content[len(mark) : wrong].decode(encoding)
    if "\0" in text:  # valid, but the sign of binary files, and of UTF-16 without a mark
        text = text[: text.index("\0")]
        wrong = len(mark) + len(text.encode(encoding))
    if wrong is None:
        return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    name, line = encoding[:6].upper().rstrip("-"), text.count("\n") + 1
    raise UsageError(
        f"{where!r} is not {name} text (byte 0x{content[wrong]:02x} at offset {wrong}, in line {line}); expected "
        "UTF-8, such as `iconv -f LATIN1 -t UTF-8` makes of Latin-1, or UTF-16 with a byte order mark"
    )
