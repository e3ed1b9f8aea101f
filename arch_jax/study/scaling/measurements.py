"""Measured points of a scaling law: parameters, tokens and loss of finished runs, and their CSV files."""

import csv
import dataclasses
import io
import math
from pathlib import Path

import numpy as np

from arch_jax.data.base import check_whole
from arch_jax.data.text.reading import read_text
from arch_jax.errors import UsageError, nearest, unknown
from arch_jax.train.workdir import reason

#: A law of five constants can't be told from fewer points.
FEWEST_POINTS = 5

#: Usual names of the columns, lower case, without spaces and the like.
_USUAL = {
    "parameters": ("parameters", "n", "params", "modelsize", "nparameters", "nparams", "numparams", "size"),
    "tokens": ("tokens", "d", "trainingtokens", "ntokens", "numtokens"),
    "flops": ("flops", "c", "flop", "trainingflops", "trainingflop", "compute"),
    "loss": ("loss", "l", "finalloss", "validationloss", "evalloss"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Measurements:
    """Measured losses; three arrays "points", float64, positive and finite.

    Attributes:
      parameters: N of each run.
      tokens: D of each run.
      loss: L in nats, at the end of each.

    Raises:
      UsageError: the arrays are not equally long, or hold a number that is not positive and finite.
    """

    parameters: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            array = np.asarray(getattr(self, field.name), np.float64)
            object.__setattr__(self, field.name, array)
            if array.shape != (len(self.parameters),):
                raise UsageError(f"{field.name} has shape {array.shape}; expected one number a point")
            wrong = array[~(np.isfinite(array) & (array > 0))]
            if wrong.size:
                raise UsageError(f"{field.name} of a point is {wrong[0]}; expected a positive number")

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def flops(self) -> np.ndarray:
        """C = 6 N D."""
        return 6 * self.parameters * self.tokens

    def without_highest(self, count: int) -> "Measurements":
        """Without the `count` points of the highest loss.

        Raises:
          UsageError: `count` is negative, or fewer than 5 points are left.
        """
        if check_whole("drop_highest", count, 0) == 0:
            return self
        if len(self) - count < FEWEST_POINTS:
            raise UsageError(
                f"drop_highest is {count} of {len(self)} points; a law of {FEWEST_POINTS} parameters needs at least as "
                f"many points, so expected 0 to {len(self) - FEWEST_POINTS}"
            )
        kept = np.sort(np.argsort(self.loss, kind="stable")[: len(self) - count])
        return Measurements(self.parameters[kept], self.tokens[kept], self.loss[kept])


def read_measurements(
    path: Path | str,
    parameters: str | None = None,
    tokens: str | None = None,
    flops: str | None = None,
    loss: str | None = None,
    drop_highest: int = 0,
) -> Measurements:
    """Points from a CSV file with a header.

    Args:
      path: of the file.
      parameters: the column of N; if not given, one of a usual name is taken, and so for the others.
      tokens: the column of D.
      flops: the column of C, where there is no D: then D = C / 6N.
      loss: the column of L.
      drop_highest: the number of points of the highest loss that are left out.

    Raises:
      UsageError: no such file, or not CSV; a column that is missing; a value that is not a positive number, with its
        line; fewer than 5 points are left; `tokens` and `flops` both named.
    """
    if tokens is not None and flops is not None:
        raise UsageError(f"tokens are column {tokens!r} and flops column {flops!r}; expected one of the two")
    path = Path(path)
    if not path.exists():
        raise UsageError(f"the points file {str(path)!r} does not exist; expected CSV with a header")
    try:
        reader = csv.reader(io.StringIO(read_text(path), newline=""))
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as problem:
        raise UsageError(f"{path} can't be read as CSV: {reason(problem)}") from None
    wanted = {
        "parameters": _column(path, header, "parameters", parameters),
        "loss": _column(path, header, "loss", loss),
    }
    if flops is None and (tokens is not None or _usual(header, "tokens") or not _usual(header, "flops")):
        wanted["tokens"] = _column(path, header, "tokens", tokens)
    else:
        wanted["flops"] = _column(path, header, "flops", flops)
    values = {
        what: np.array([_number(path, line, row, header, column) for line, row in rows], np.float64)
        for what, column in wanted.items()
    }
    if len(rows) < FEWEST_POINTS:
        raise UsageError(
            f"{path} has {len(rows)} points; a law of {FEWEST_POINTS} parameters needs at least {FEWEST_POINTS}"
        )
    if "tokens" not in values:
        values["tokens"] = values["flops"] / (6 * values["parameters"])
    return Measurements(values["parameters"], values["tokens"], values["loss"]).without_highest(drop_highest)


def _usual(header: list[str], what: str) -> list[str]:
    """The columns of a usual name, the most usual first."""
    plain = {}
    for name in header:
        plain.setdefault("".join(c for c in name.lower() if c.isalnum()), name)
    return [plain[usual] for usual in _USUAL[what] if usual in plain]


def _column(path: Path, header: list[str], what: str, asked: str | None) -> str:
    if asked is not None and asked not in header:
        raise unknown(f"column of {path}", asked, header)
    found = [asked] if asked is not None else _usual(header, what)
    if not found:
        of = "tokens or flops" if what == "tokens" else what
        raise UsageError(f"{path} has no column that is known as {of}{nearest(what, header)}; name the one to take")
    return found[0]


def _number(path: Path, line: int, row: list[str], header: list[str], column: str) -> float:
    place = header.index(column)
    text = row[place].strip() if place < len(row) else ""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"{column!r} is {text!r} in line {line} of {path}; expected a positive number")
    return value
