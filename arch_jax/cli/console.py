"""Tables on a terminal or in a pipe, and what the commands' options have in common."""

import argparse
from typing import Any

from arch_jax.console import console


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
    on = console.rich()
    if not on.is_terminal:  # a pipe has no width: nothing is to be folded
        on = console.rich(width=240)
    left_out = []
    while keep is not None and len(thing.columns) > keep and _width(on, thing) > on.width:
        left_out.insert(0, str(thing.columns.pop().header))
    on.print(thing, markup=False, highlight=False)
    if left_out:
        on.print(f"(no room for {', '.join(left_out)}: see the files)", markup=False, highlight=False)


def _width(on: Any, grid: Any) -> int:
    """Columns of text that a table takes with nothing folded."""
    from rich.measure import Measurement

    return Measurement.get(on, on.options.update(max_width=10_000), grid).maximum


def changes_of(options: argparse.Namespace) -> dict[str, str]:
    """The overrides that `--set` gave: dotted field -> text."""
    from arch_jax.fields import assignment

    return dict(assignment(text) for text in options.set)
