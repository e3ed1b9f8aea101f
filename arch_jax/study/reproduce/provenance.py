"""The files of the library that a run executed, by the hash of their code: what makes a result stale.

A file counts once one of its functions was called: importing it alone, as the search for components does with all of
them, changes no result. Comments and docstrings are no code. A file that is used for its constants alone is not seen.
Experiments count where they are run, and records and tables where they are read.
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
from typing import Any

from arch_jax.experiment import directories

_PACKAGE = Path(__file__).resolve().parents[2]
#: Where experiments lie: in a clone beside the package, in an installed one inside it.
_EXPERIMENTS = "experiments"
#: Flag of a code object that is a function's, and not a module's or a class body's.
_FUNCTION = 0x1


class ExecutedCode:
    """The files of the package and of its experiments that ran or were read, while `executed_code` is open.

    Attributes:
      files: paths of all files that were noted, of whatever package.
    """

    def __init__(self) -> None:
        self.files: set[str | None] | frozenset[str | None] = set()

    def hashes(self) -> dict[str, str]:
        """Path -> 8 hexadecimal digits of a hash of its code, or of a record's text, in order.

        Paths are those in a clone: `arch_jax/optimizer.py`, `experiments/gpt.py`, `experiments/results/gpt.json`.
        """
        found = {}
        for file in set(self.files):
            path = Path(file or "")
            name = _name_of(path)
            if name is not None and path.is_file() and not path.is_relative_to(Path(__file__).parent):  # not what notes
                found[name] = code_hash(path)
        return dict(sorted(found.items()))


@contextlib.contextmanager
def executed_code() -> Iterator[ExecutedCode]:
    """Notes which files of the package run, in this thread and in those that begin meanwhile.

    It costs a small part of the time of tracing, and nothing of that of compiled programs. A debugger or a measure of
    coverage that is at work already goes on.
    """
    code, noted = ExecutedCode(), set()
    code.files, note = noted, noted.add

    def traced(previous: Any) -> Any:
        # Lambdas: they run at every call of every function, where a checked function of our own would be too slow.
        # A generated function, such as a dataclass's __init__, has no file of its own but its class's globals.
        noting = lambda frame: note(frame.f_globals.get("__file__")) if frame.f_code.co_flags & _FUNCTION else None
        if previous is None:
            return lambda frame, event, argument: noting(frame)
        return lambda frame, event, argument: (noting(frame), previous(frame, event, argument))[1]

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and code.files is noted and str(arguments[0]).endswith(".json"):
            note(str(arguments[0]))

    before, before_in_threads = sys.gettrace(), threading.gettrace()
    sys.addaudithook(heard)  # for good, which is why it asks whether it is still wanted
    sys.settrace(traced(before))
    threading.settrace(traced(before_in_threads))
    try:
        yield code
    finally:
        sys.settrace(before)
        threading.settrace(before_in_threads)  # type: ignore[arg-type]
        code.files = frozenset(noted)


def changed_since(hashes: Mapping[str, str]) -> list[str]:
    """The files whose code is another than when a result was made, or which are gone, in order."""
    return [name for name, was in sorted(hashes.items()) if _hash_now(name) != was]


def code_hash(path: Path) -> str:
    """8 hexadecimal digits of a hash of a Python file's code, without comments, docstrings and empty lines.

    Of another file it is the hash of its text.
    """
    return _code_hash(path, path.stat().st_mtime_ns)


def _name_of(path: Path) -> str | None:
    """A file's path in a clone; None if it is neither of the package nor of its experiments."""
    for folder in directories():
        if path.is_relative_to(folder):
            return f"{_EXPERIMENTS}/{path.relative_to(folder).as_posix()}"
    if path.is_relative_to(_PACKAGE) and path.suffix == ".py":
        return f"{_PACKAGE.name}/{path.relative_to(_PACKAGE).as_posix()}"
    return None


def _hash_now(name: str) -> str | None:
    top, _, rest = name.partition("/")
    folders = directories() if top == _EXPERIMENTS else [_PACKAGE]
    paths = [folder / rest for folder in folders if (folder / rest).is_file()]
    return code_hash(paths[0]) if paths else None


@functools.cache
def _code_hash(path: Path, _changed: int) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return hashlib.sha256(text.encode()).hexdigest()[:8]
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
