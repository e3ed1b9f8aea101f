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


def show(thing: Any) -> None:
    """Prints a text or a table as it is."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a pipe has no width: nothing is to be folded
        console = Console(width=240)
    console.print(thing, markup=False, highlight=False)


def changes_of(options: argparse.Namespace) -> dict[str, str]:
    """The overrides that `--set` gave: dotted field -> text."""
    from arch_jax.fields import assignment

    return dict(assignment(text) for text in options.set)
