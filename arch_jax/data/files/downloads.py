"""Files with a known SHA-256: found in the data folder, or downloaded there once and checked."""

import hashlib
import pathlib

from arch_jax.data.files import directories
from arch_jax.errors import RunError

TIMEOUT_SECONDS = 30
#: Larger files than this are not read: none of the known files exceeds 2 MB.
LARGEST = 2**24
KNOWN = "the file known by that name"


def content(file: str, url: str, sha256: str, instead: str, what: str | None = None) -> bytes:
    """The bytes of a file, which have the known hash.

    Args:
      file: its place in the data folder, such as "planetoid/ind.cora.x".
      url: download address if it is missing.
      sha256: of its content, in hexadecimal digits.
      instead: an alternative without download, such as "source 'pydocs'".
      what: its name in messages, such as "Tiny Shakespeare"; by default its name.

    Raises:
      RunError: the download failed, the file can't be read, or it does not have the known hash.
    """
    path = directories.find(file)
    if path is None:
        path = directories.writable_directory() / file
        with directories.locked(path):
            if not path.exists():  # else another process downloaded it while this one waited
                directories.write_atomically(path, _download(path, url, sha256, instead, what))
    try:
        with open(path, "rb") as opened:
            found = opened.read(LARGEST)
    except OSError as error:
        raise RunError(f"cannot read {str(path)!r}: {error.strerror or error}; expected a readable file") from error
    if (digest := hashlib.sha256(found).hexdigest()) != sha256:
        raise RunError(
            f"{str(path)!r} is not {what or KNOWN} (its SHA-256 is {digest[:12]}..., expected {sha256[:12]}...); "
            f"delete it to have it downloaded again, or put there the file from {url}"
        )
    return found


def _download(path: pathlib.Path, url: str, sha256: str, instead: str, what: str | None) -> bytes:
    import http.client
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            found = response.read(LARGEST)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise RunError(
            f"cannot download {what or path.name} ({reason}); put {url} by hand at {str(path)!r}, or use {instead}, "
            f"which needs no download"
        ) from error
    if (digest := hashlib.sha256(found).hexdigest()) != sha256:
        raise RunError(
            f"what {url} gave is not {what or KNOWN} (its SHA-256 is {digest[:12]}..., expected {sha256[:12]}...); put "
            f"the right file by hand at {str(path)!r}"
        )
    return found
