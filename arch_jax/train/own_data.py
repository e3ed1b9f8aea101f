"""The data of a run, found again by its content: by its source as it is written, or at the place where it was."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from arch_jax.data.base import load_corpus
from arch_jax.data.files import places
from arch_jax.errors import UsageError


def find(
    data: Any, path: Path, stored: Mapping[str, Any] | None, tell: Callable[[str], None] | None
) -> tuple[Any, Path | None]:
    """Loads the data of a run that is to be resumed, evaluated or sampled from, or of a new one.

    A relative path is looked up from here, and where the run had it; what has the content of the run's data is taken.

    Args:
      data: the component.
      path: the run's folder.
      stored: the run's `config.json`; None of a new run.
      tell: given each sentence on what was left out.

    Returns:
      The corpus, whose hash may not be the run's, and its place, if it is named by one.

    Raises:
      UsageError: the data can't be read, here or where it was.
    """
    here = places.place(getattr(data, "source", None))
    written = (stored or {}).get("experiment", {}).get("data")
    if here is None or not isinstance(written, Mapping) or written.get("source") != data.source:
        return load_corpus(data, tell), here
    there, before = [here], stored.get("place")
    if not here.is_absolute() and isinstance(before, str) and before != os.path.abspath(here):
        there.append(Path(before))
    known = " nor ".join(repr(str(one)) for one in there)
    there = [one for one in there if one.exists()]
    if not there:
        raise UsageError(
            f"the data {data.source!r} of the run in {path} is no longer there: there is no {known}; expected its "
            f"place by --set data.source={places.at(data.source, 'PATH')}"
        )
    found, problem = [], None
    for one in there:
        moved = data if one is here else dataclasses.replace(data, source=places.at(data.source, one))
        notes: list[str] = []
        try:
            found.append((load_corpus(moved, notes.append), one, notes))
        except UsageError as refused:
            problem = problem or refused
            continue
        if found[-1][0].facts.get("sha256") == stored["data"].get("sha256"):
            found = found[-1:]
            break
    if not found:
        raise problem
    corpus, place, notes = found[0]
    for note in notes if tell else ():
        tell(note)
    return corpus, place
