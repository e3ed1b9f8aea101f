"""Tiny Shakespeare: from the data folder, or downloaded there once and checked against its hash."""

from arch_jax.data.files import downloads
from arch_jax.data.text.reading import text_of

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FILE = "tinyshakespeare/input.txt"


def tinyshakespeare() -> str:
    """The text of Tiny Shakespeare: 1,115,394 characters, 65 different ones.

    Looks for `tinyshakespeare/input.txt` in the data folder and downloads it there where it is missing.

    Raises:
      RunError: the download failed, or the file (downloaded or found) does not have the known SHA-256.

    Source: https://github.com/karpathy/char-rnn, data/tinyshakespeare.
    """
    instead = "source 'pydocs'"
    return text_of(downloads.content(FILE, URL, SHA256, instead=instead, what="Tiny Shakespeare"), FILE)
