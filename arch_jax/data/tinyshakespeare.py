"""Tiny Shakespeare: from the data folder, or downloaded there once and checked against its hash."""

import hashlib
import pathlib

from arch_jax.data import directories
from arch_jax.errors import RunError

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
FILE = "tinyshakespeare/input.txt"
TIMEOUT_SECONDS = 30


def tinyshakespeare() -> str:
    """The text of Tiny Shakespeare: 1,115,394 characters, 65 different ones.

    Looks for `tinyshakespeare/input.txt` in the data folder and downloads it there where it is missing.

    Raises:
      RunError: the download failed, or the file (downloaded or found) does not have the known SHA-256.

    Source: https://github.com/karpathy/char-rnn, data/tinyshakespeare.
    """
    path = directories.find(FILE)
    if path is not None:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise RunError(
                f"{str(path)!r} is not Tiny Shakespeare (its SHA-256 is {_short(content)}..., expected "
                f"{SHA256[:12]}...); delete it to have it downloaded again, or put there the file from {URL}"
            )
        return content.decode()

    path = directories.writable_directory() / FILE
    with directories.locked(path):
        if not path.exists():  # else another process downloaded it while this one waited
            directories.write_atomically(path, _download(path))
    return path.read_bytes().decode()


def _download(path: pathlib.Path) -> bytes:
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(
            f"cannot download Tiny Shakespeare ({reason}); put {URL} by hand at {str(path)!r}, or use source 'pydocs', "
            f"which needs no download"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RunError(
            f"what {URL} gave is not Tiny Shakespeare (its SHA-256 is {_short(content)}..., expected "
            f"{SHA256[:12]}...); put the right file by hand at {str(path)!r}"
        )
    return content


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]
