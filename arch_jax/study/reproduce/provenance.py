"""The files of the library that a run executed, by the hash of their code: what makes a result stale.

A file counts once one of its functions was called: importing it alone, as the search for components does with all of
them, changes no result. Comments and docstrings are no code. What a file is read for its constants alone is not seen.
"""

import ast
import contextlib
import functools
import hashlib
import io
import sys
import threading
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

_PACKAGE = Path(__file__).resolve().parents[2]
#: Flag of a code object that is a function's, and not a module's or a class body's.
_FUNCTION = 0x1


class ExecutedCode:
    """The files of the package and of its experiments of which a function was called, while `executed_code` is open."""

    def __init__(self) -> None:
        self._files: set[str] = set()
        self.recording = True

    def note(self, frame: FrameType) -> None:
        """Notes the file of a function that is called."""
        if frame.f_code.co_flags & _FUNCTION:
            # Generated functions, such as a dataclass's __init__, have no file of their own but their class's globals.
            self._files.add(frame.f_globals.get("__file__") or "")

    def hashes(self) -> dict[str, str]:
        """Path below the package -> 8 hexadecimal digits of a hash of its code, in order."""
        found = {}
        for name in set(self._files):
            path = Path(name)
            if path.suffix == ".py" and path.is_relative_to(_PACKAGE) and path.is_file():
                found[path.relative_to(_PACKAGE).as_posix()] = code_hash(path)
        return dict(sorted(found.items()))


@contextlib.contextmanager
def executed_code() -> Iterator[ExecutedCode]:
    """Notes which files of the package run, in this thread and in those that begin meanwhile.

    It costs a small part of the time of tracing, and nothing of that of compiled programs. A debugger or a measure of
    coverage that is at work already goes on.
    """
    code = ExecutedCode()
    before, before_in_threads = sys.gettrace(), threading.gettrace()

    def traced(previous: Any) -> Any:
        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if code.recording:
                code.note(frame)
            return None if previous is None else previous(frame, event, argument)

        return trace

    sys.settrace(traced(before))
    threading.settrace(traced(before_in_threads))
    try:
        yield code
    finally:
        code.recording = False
        sys.settrace(before)
        threading.settrace(before_in_threads)  # type: ignore[arg-type]


def changed_since(hashes: Mapping[str, str]) -> list[str]:
    """The files whose code is another than when a result was made, or which are gone, in order."""
    return [name for name, was in sorted(hashes.items()) if _hash_now(name) != was]


def code_hash(path: Path) -> str:
    """8 hexadecimal digits of a hash of a file's code: without comments, docstrings and empty lines."""
    return _code_hash(path, path.stat().st_mtime_ns)


def _hash_now(name: str) -> str | None:
    path = _PACKAGE / name
    return code_hash(path) if path.is_file() else None


@functools.cache
def _code_hash(path: Path, _changed: int) -> str:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines[first.lineno - 1 : first.end_lineno] = [""] * (first.end_lineno - first.lineno + 1)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    code = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(code.encode()).hexdigest()[:8]
