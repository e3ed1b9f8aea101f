"""Tables on a terminal or in a pipe, and what the commands' options have in common."""

import argparse
from typing import Any


def table(*columns: str) -> Any:
    """An empty table; a column whose name begins with ">" is set to the right."""
    from rich.table import Table

    made = Table(show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column.lstrip(">"), justify="right" if column.startswith(">") else "left", overflow="fold")
    return made


def show(thing: Any, keep: int | None = None) -> None:
    """Prints a text or a table as it is.

    Args:
      thing: what is printed.
      keep: of a table, how many columns must be there; of the others, the last are left out where the terminal is too
        narrow for them, since figures that are folded can't be read.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a pipe has no width: nothing is to be folded
        console = Console(width=240)
    left_out = []
    while keep is not None and len(thing.columns) > keep and _width(console, thing) > console.width:
        left_out.insert(0, str(thing.columns.pop().header))
    console.print(thing, markup=False, highlight=False)
    if left_out:
        console.print(f"(no room for {', '.join(left_out)}: see the files)", markup=False, highlight=False)


def _width(console: Any, grid: Any) -> int:
    """Columns of text that a table takes with nothing folded."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), grid).maximum


def changes_of(options: argparse.Namespace) -> dict[str, str]:
    """The overrides that `--set` gave: dotted field -> text."""
    from arch_jax.fields import assignment

    return dict(assignment(text) for text in options.set)
