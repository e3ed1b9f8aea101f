"""Sources that are named by their place: "text:PATH", "images:DIR", "idx:DIR"."""

import os
from pathlib import Path
from typing import Any

#: Kinds of sources whose name is followed by the path of a file or folder.
KINDS = ("idx", "images", "text")


def place(source: Any) -> Path | None:
    """The file or folder that a source names; None where it is not named by its place."""
    kind, _, path = source.partition(":") if isinstance(source, str) else ("", "", "")
    return Path(os.path.expanduser(path)) if kind in KINDS and path.strip() else None


def at(source: str, path: str | Path) -> str:
    """The source of the same kind at another place."""
    return f"{source.partition(':')[0]}:{path}"
