"""Tables, whole or line by line as results come in."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

MOST = 6  # columns that a page shows without scrolling


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*columns: object) -> str:
    """The first two lines of a table."""
    return row(*columns) + "\n|" + " --- |" * len(columns)


def markdown(corner: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A table of numbers, one row per name; several of them where it would be too wide for a page."""
    columns = list(columns)
    lines = [row(corner, *columns), "| --- |" + " ---: |" * len(columns)]
    return narrow("\n".join([*lines, *(row(name, *cells) for name, cells in rows.items())]))


def narrow(table: str, most: int = MOST) -> str:
    """A table as tables of at most so many columns, one below the other.

    Each begins with the first column, has about as many of the others, and leaves out rows that are empty there.
    """
    cells = [
        [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in table.split("\n")
    ]
    values = len(cells[0]) - 1
    parts = -(-values // (most - 1))
    if parts <= 1:
        return table
    ends = [1 - (-values * part // parts) for part in range(parts + 1)]
    return "\n\n".join(_columns(cells, *between) for between in pairwise(ends))


def _columns(cells: list[list[str]], start: int, stop: int) -> str:
    """The first column and those from start to stop."""
    (title, rule), rows = cells[:2], (line for line in cells[2:] if any(line[start:stop]))
    return "\n".join(row(line[0], *line[start:stop]) for line in (title, rule, *rows))
