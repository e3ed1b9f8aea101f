"""The ledger: all records of reproductions, and whether the experiments have changed since.

A record is `results/NAME.json` beside the experiment's file, `NAME.py`.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from arch_jax import fields
from arch_jax.errors import ArchJaxError, UsageError, unknown
from arch_jax.experiment import Experiment, directories, load
from arch_jax.study.reproduce.provenance import changed_since
from arch_jax.study.reproduce.record import Record
from arch_jax.study.reproduce.reproduce import configuration, fingerprint, published_by
from arch_jax.train.workdir import reason, write


@dataclasses.dataclass(frozen=True)
class LedgerEntry:
    """A line of the ledger.

    Attributes:
      name: of the record's file.
      record: the file's content; None if it can't be read.
      stale: what has changed of the experiment since; empty for a fresh one.
      changed: files of the package that ran and whose code has changed since.
      problem: why it can't be read; empty if it can.
    """

    name: str
    record: Record | None
    stale: str = ""
    problem: str = ""
    changed: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """Such as "fresh", or what makes it stale: a changed experiment, changed code, or no knowledge of the code."""
        if self.record is None:
            return self.problem
        if self.stale:
            return f"stale: {self.stale}"
        if not self.record.code:
            return "stale: made before records kept the code that ran"
        if not self.changed:
            return "fresh"
        more = f" and {len(self.changed) - 3} more" if len(self.changed) > 3 else ""
        ran = f"{len(self.changed)} of {len(self.record.code)} files that ran have changed"
        return f"stale: {ran}: {', '.join(self.changed[:3])}{more}"


def write_record(record: Record, folder: Path | None = None) -> Path:
    """Adds a record to the ledger: `NAME.json` in the folder, by default that of the project's experiments.

    Raises:
      UsageError: the run's settings differ from the experiment's file.
      RunError: it can't be written.
    """
    if record.changes:
        raise UsageError(
            f"the record of {record.name!r} is not kept: {', '.join(record.changes)} was set; expected a run of the "
            "experiment as its file has it"
        )
    path = (results_folder() if folder is None else folder) / f"{record.name}.json"
    write(path, record.to_text())
    return path


def results_folder() -> Path:
    """The folder of the records of the project's experiments.

    Raises:
      UsageError: there are no experiments.
    """
    found = directories()
    if not found:
        raise UsageError("there is no folder of experiments beside the package; expected one in a clone or a wheel")
    return found[0] / "results"


def in_clone() -> bool:
    """True if the ledger is a clone's, which may be written to; an installed package's is read-only."""
    return results_folder().parent.name == "experiments"


def ledger(folder: Path | None = None) -> list[LedgerEntry]:
    """All records of a folder, by name; each is stale where its experiment, in the folder above, has changed since.

    A record that can't be read is an entry with a problem; the others are shown.
    """
    folder = results_folder() if folder is None else folder
    return [_entry(path) for path in sorted(folder.glob("[!.]*.json"))]


def _entry(path: Path) -> LedgerEntry:
    try:
        record = Record.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as problem:
        why = f"{problem} is missing" if isinstance(problem, KeyError) else reason(problem)
        return LedgerEntry(path.stem, None, problem=f"the record {path.name} is damaged: {why}; run `reproduce` again")
    return LedgerEntry(path.stem, record, stale=_stale(record, path), changed=tuple(changed_since(record.code)))


def load_record(name: str) -> Record:
    """The record of one of the project's experiments.

    Raises:
      UsageError: there is none of that name, or it can't be read.
    """
    folder = results_folder()
    names = sorted(path.stem for path in folder.glob("[!.]*.json"))
    if name not in names:
        raise unknown("record", name, names)
    found = _entry(folder / f"{name}.json")
    if found.record is None:
        raise UsageError(found.problem)
    return found.record


def _stale(record: Record, path: Path) -> str:
    """The change since a record was written; empty if there is none."""
    file = path.parent.parent / f"{path.stem}.py"
    if not file.is_file():
        return f"{file.name} is gone"
    try:
        experiment, module = load(str(file))
        now, published = configuration(experiment), published_by(module)
        if fingerprint(now, published) == record.fingerprint:
            return ""
        # A field that a later version added is no change: read by this version, its default stands in both.
        then = configuration(Experiment.from_json(dict(record.experiment)))
    except ArchJaxError as problem:
        return str(problem)
    changed = [f"{place} was {_short(was)} and is {_short(new)}" for place, was, new in fields.difference(then, now)]
    if fingerprint({}, published) != fingerprint({}, tuple(one.published for one in record.figures)):
        changed.append("the published figures have changed")
    return changed[0] + (f", and {len(changed) - 1} more" if len(changed) > 1 else "") if changed else ""


def ledger_table(entries: list[LedgerEntry]) -> list[dict[str, str]]:
    """The ledger's rows as text, one for each published number."""
    from arch_jax.study.formatting import format_duration

    rows = []
    for entry in entries:
        if entry.record is None:
            rows.append(_row(experiment=entry.name, verdict=entry.problem))
            continue
        record = entry.record
        made = {"commit": f"{record.commit or '-'}, {record.date}"}
        made["device"] = record.device + ("" if record.seconds is None else f", {format_duration(record.seconds)}")
        stale = f"stale: {entry.stale}" if entry.stale else ""
        if not record.figures:
            seeds = max((len(one.curves) for one in record.variants), default=0)
            verdict = f"{len(record.variants)} variants recorded" + (f" ({stale})" if stale else "")
            rows.append(_row(experiment=entry.name, published="nothing", seeds=str(seeds), verdict=verdict, **made))
        for one in record.figures:
            notes = [note for note in (one.remark, stale) if note]
            row = one.row
            row["verdict"] += f" ({'; '.join(notes)})" if notes else ""
            rows.append(_row(experiment=entry.name, tolerance=f"{one.published.tolerance:g}", **row, **made))
    return rows


def write_table(entries: list[LedgerEntry], path: Path) -> Path:
    """Replaces the text between `<!-- ledger -->` and `<!-- /ledger -->` in a Markdown file by the ledger's table.

    Raises:
      UsageError: there is no such file, or it does not have the two marks once each, in this order.
      RunError: it can't be written.
    """
    marks = ("<!-- ledger -->", "<!-- /ledger -->")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UsageError(
            f"{path} can't be read: {reason(problem)}; expected a file with {' and '.join(marks)}"
        ) from None
    if any(text.count(mark) != 1 for mark in marks) or text.index(marks[0]) > text.index(marks[1]):
        raise UsageError(f"{path} has no place for the ledger; expected {' and '.join(marks)}, once each")
    rows = ledger_table(entries)
    names = list(_row())
    lines = [names, ["---"] * len(names), *(list(row.values()) for row in rows)]
    escaped = [[re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in line] for line in lines]
    body = "\n".join("| " + " | ".join(line) + " |" for line in escaped) if rows else "No record yet."
    before, after = text.split(marks[0])[0], text.split(marks[1])[1]
    write(path, f"{before}{marks[0]}\n\n{body}\n\n{marks[1]}{after}")
    return path


def _row(**cells: str) -> dict[str, str]:
    names = ("experiment", "published", "source", "tolerance", "measured", "seeds", "verdict", "device", "commit")
    return {name: cells.get(name, "") for name in names}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
