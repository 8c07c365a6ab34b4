"""Printing finished tables: drawn on a terminal, as markdown everywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from blsgan.evaluation.results import Table


def print_tables(heading: str, tables: Sequence[Table], console: Console) -> None:
    """Prints a line that says what the tables belong to, and the tables with their notes."""
    console.print(heading, highlight=False, soft_wrap=True)
    for table in tables:
        if console.is_terminal:
            console.print()
            console.print(_drawn(table))
            for note in table.notes:
                console.print(note, style="dim", highlight=False)
        else:  # into a file or another program: nothing wrapped, nothing drawn
            click.echo()
            click.echo(table.markdown(), nl=False)


def _drawn(table: Table) -> Any:
    from rich.markup import escape
    from rich.table import Table as RichTable

    drawn = RichTable(title=escape(table.title), title_justify="left")
    for index, name in enumerate(table.header):
        drawn.add_column(escape(name), justify="left" if index == 0 else "right")
    for row in table.rows:
        drawn.add_row(*map(escape, row))
    return drawn
