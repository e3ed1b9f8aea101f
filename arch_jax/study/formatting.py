"""Human-readable numbers, tables as CSV, and figures as files: shared by all studies."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arch_jax import fields
from arch_jax.figures.canvas import png_of
from arch_jax.train.workdir import write

#: Colours that most people, and grey prints, tell apart (Okabe & Ito 2008).
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")


def format_setting(value: Any) -> str:
    """A setting in command-line form."""
    value = fields.to_json(value)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def format_count(number: float | int | None) -> str:
    """Such as 1.23 M; "-" for None."""
    return _scaled(number, ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")))


def format_size(number: float | int | None) -> str:
    """Bytes, such as 12.3 MB; "-" for None."""
    return "-" if number is None else f"{_scaled(number, ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')))}B"


def format_duration(seconds: float | None) -> str:
    """Such as 12.3 ms; "-" for None."""
    if seconds is None:
        return "-"
    return (
        f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 120 else f"{seconds / 60:.3g} min"
    )


def _scaled(number: float | int | None, units: Sequence[tuple[float, str]]) -> str:
    if number is None:
        return "-"
    for factor, letter in units:
        if abs(number) >= factor:
            return f"{number / factor:.3g} {letter}"
    return f"{number:.3g} "


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Rows with the same keys as CSV; None is an empty cell.

    Raises:
      RunError: it can't be written.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())
    return path


def save(figure: Any, path: Path) -> Path:
    """Writes a figure as PNG, atomically."""
    write(path, png_of(figure))
    return path
