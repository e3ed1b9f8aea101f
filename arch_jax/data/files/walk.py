"""The one walk through folders that people fill: the files in them, and a count of those that were left out, by reason.

Every reader of folders goes through it, so that no leftover of a notebook, an archive or a file manager is data.
"""

import collections
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from arch_jax.errors import UsageError

#: Folders that tools leave in those of others, beside hidden ones (`.ipynb_checkpoints`, `.git`).
TOOLS = frozenset({"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})

#: Parts of a data set by the names that their folders have, in any case.
SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
}

#: Reason for leaving something out -> how one is called, and several.
_REASONS = {
    "hidden": ("hidden file or folder", "hidden files or folders"),
    "tools": ("folder of a tool", "folders of tools"),
    "broken": ("link that leads nowhere", "links that lead nowhere"),
    "again": ("link to a folder that is read already", "links to folders that are read already"),
    "special": ("device or pipe", "devices or pipes"),
    "type": ("file of another type", "files of other types"),
    "beside": ("folder beside the parts", "folders beside the parts"),
    "loose": ("file outside the class folders", "files outside the class folders"),
    "damaged": ("damaged image", "damaged images"),
    "empty": ("empty file", "empty files"),
    "validation": ("validation image", "validation images"),
    "test": ("test image", "test images"),
}

Skipped = collections.Counter  # reason -> how many


class Listing(NamedTuple):
    """Paths in the order of their names, and how many others were skipped, by reason."""

    paths: tuple[Path, ...]
    skipped: Skipped


def files(root: Path, suffixes: Collection[str], without: Collection[str] = ()) -> Listing:
    """All files of some types in a folder and the folders in it, links among them followed.

    Hidden files and folders, those of tools, and links that lead nowhere are left out. A folder that several paths
    lead to is read once, by the path without links where there is one: no link makes a loop, or a file count twice.

    Args:
      root: an existing folder.
      suffixes: of the files, in lower case, such as ".png".
      without: names of further folders that are not entered.

    Raises:
      UsageError: a folder can't be read.
    """
    found: list[Path] = []
    skipped: Skipped = collections.Counter()
    # A link to a folder around this one is a loop as well: another class, say, would be read as a part of this.
    seen = {_identity(folder) for folder in Path(os.path.realpath(root)).parents}
    waiting, links = [root], []
    while waiting or links:
        # Links wait until all that is reached without them has been.
        folder = waiting.pop() if waiting else links.pop(0)
        if _identity(folder) in seen:
            skipped["again"] += 1
            continue
        seen.add(_identity(folder))
        for path, kind in _entries(folder, skipped):
            if kind == "folder" and path.name not in without:
                (links if path.is_symlink() else waiting).append(path)
            elif kind == "file" and path.suffix.lower() not in suffixes:
                skipped["type"] += 1
            elif kind == "file":
                found.append(path)
    return Listing(tuple(sorted(found)), skipped)


def folders(root: Path) -> Listing:
    """The folders right in a folder, links to folders among them; see `files` for those that are left out.

    Raises:
      UsageError: the folder can't be read.
    """
    skipped: Skipped = collections.Counter()
    found = []
    for path, kind in _entries(root, skipped):
        if kind == "folder":
            found.append(path)
        elif kind == "file":
            skipped["loose"] += 1
    return Listing(tuple(found), skipped)


def names(folder: Path) -> list[str]:
    """The names of all that a folder holds, in order, to look one up or to suggest one; none where it can't be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def parts(found: Iterable[Path]) -> dict[str, Path]:
    """Part ("train", "validation", "test") -> its folder, of those whose names are usual for one, in any case.

    Raises:
      UsageError: two folders are the same part.
    """
    known = {name: part for part, usual in SPLITS.items() for name in usual}
    by_part: dict[str, Path] = {}
    for path in found:
        part = known.get(path.name.casefold())
        if part in by_part:
            raise UsageError(
                f"{str(by_part[part])!r} and {path.name!r} beside it are both named for the part {part!r}; expected one"
            )
        if part is not None:
            by_part[part] = path
    return by_part


def note(source: str, skipped: Skipped) -> tuple[str, ...]:
    """A sentence on all that was left out of a source, as a tuple; an empty one where nothing was."""
    counts = [f"{skipped[why]:,} {_REASONS[why][skipped[why] > 1]}" for why in _REASONS if skipped[why]]
    return (f"{source} is read without {', '.join(counts)}",) if counts else ()


def readable(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 as \\xe4."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _entries(folder: Path, skipped: Skipped) -> Iterator[tuple[Path, str]]:
    """(path, "file" or "folder") of each entry of a folder that is to be read, by name; the others are counted."""
    try:
        there = sorted(os.listdir(folder))
    except OSError as error:
        raise UsageError(
            f"cannot read the folder {str(folder)!r}: {error.strerror or error}; expected one that may be read"
        ) from error
    for name in there:
        path = folder / name
        try:
            mode = os.stat(path).st_mode
        except OSError:  # also a link to itself
            mode = 0
        folderish = stat.S_ISDIR(mode)
        if name.startswith("."):
            skipped["hidden"] += 1
        elif folderish and name in TOOLS:
            skipped["tools"] += 1
        elif not mode:
            skipped["broken"] += 1
        elif folderish and path.is_symlink() and _around(folder, path):
            skipped["again"] += 1
        elif folderish or stat.S_ISREG(mode):
            yield path, "folder" if folderish else "file"
        else:
            skipped["special"] += 1


def _around(folder: Path, link: Path) -> bool:
    """True if a link in a folder leads to that folder or to one that it lies in."""
    here, target = (Path(os.path.realpath(path)) for path in (folder, link))
    return target == here or target in here.parents
