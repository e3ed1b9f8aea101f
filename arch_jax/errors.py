"""Errors raised on purpose, each with one sentence for the user.

Two kinds reach the command line: a `UsageError` (wrong usage, exit code 2) and a `RunError` (the run failed, exit
code 1). Each message is one sentence that names the offending value, what was expected, and the nearest valid choice.
"""

import difflib
from collections.abc import Iterable


class ArchJaxError(Exception):
    """Base of the errors raised on purpose; its message is one sentence, and `exit_code` the command's exit status."""

    exit_code = 1


class UsageError(ArchJaxError, ValueError):
    """A value, name or argument of the caller is not valid."""

    exit_code = 2


class RunError(ArchJaxError, RuntimeError):
    """The run failed: non-finite loss, corrupt checkpoint, disk full."""

    exit_code = 1


class Diverged(RunError):
    """A loss, metric or parameter of a run is no longer finite."""


def nearest(name: str, valid: Iterable[str], most: int = 3) -> str:
    """Names the valid choices nearest to `name`, as the end of a sentence.

    Returns:
      "; the nearest are 'a', 'b'" by similarity; where nothing is similar, "; valid are ..." with the first twelve.
    """
    choices = sorted({str(choice) for choice in valid})
    if not choices:
        return ""
    close = difflib.get_close_matches(str(name), choices, n=most, cutoff=0.5)
    # People who don't remember the whole name type a prefix or a part of it.
    close += [c for c in choices if (str(name).lower() in c.lower() and name) and c not in close][: most - len(close)]
    if close:
        return ("; the nearest is " if len(close) == 1 else "; the nearest are ") + ", ".join(map(repr, close))
    shown = ", ".join(map(repr, choices[:12])) + (", ..." if len(choices) > 12 else "")
    return f"; valid are {shown}"


def unknown(kind: str, name: str, valid: Iterable[str]) -> UsageError:
    """The error for a name that is not among the valid ones: `unknown model 'gtp2'; the nearest is 'gpt2'`."""
    return UsageError(f"unknown {kind} {name!r}{nearest(name, valid)}")
