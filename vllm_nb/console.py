"""Tables that commands print."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_ANY = 10_000  # characters a line


def print_table(table: "Table") -> None:
    """In a terminal, long texts go on below; in a file or a pipe, each row is one line, however long, to be cut up by
    other programs. Nothing is left out."""
    from rich.console import Console

    for column in table.columns:
        column.overflow = "fold"
    console = Console()
    if not console.is_terminal:
        console.width = _ANY
    console.print(table)
