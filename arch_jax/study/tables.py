"""Tables of committed benchmarks, as numbers: what an architecture costs by length."""

import json

from arch_jax.errors import UsageError, unknown
from arch_jax.experiment import directories


class Table(dict[str, dict[int, dict[str, float]]]):
    """Row -> length -> unit -> number, such as "lstm" -> 1024 -> "milliseconds" -> 7.9.

    Attributes:
      title: what was measured, on which device and with which versions.
    """

    def __init__(self, title: str, rows: dict[str, dict[int, dict[str, float]]]) -> None:
        super().__init__(rows)
        self.title = title


def load_table(name: str) -> Table:
    """A table that a benchmark of the project has written, such as "mixers_by_length".

    Raises:
      UsageError: there is none of that name; with the nearest.
    """
    folders = [folder / "benchmarks" / "results" for folder in directories()]
    found = {path.stem: path for folder in folders for path in sorted(folder.glob("[!.]*.json"))}
    if name not in found:
        raise unknown("table", name, found)
    try:
        data = json.loads(found[name].read_text(encoding="utf-8"))
        rows = {row: {int(length): dict(cells) for length, cells in own.items()} for row, own in data["rows"].items()}
        return Table(str(data["title"]), rows)
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise UsageError(
            f"the table {found[name].name} is damaged: {problem}; expected what a benchmark wrote"
        ) from None
