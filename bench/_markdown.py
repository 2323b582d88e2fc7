"""Tables, whole or line by line as results come in."""

from collections.abc import Iterable, Mapping


def row(*cells: object) -> str:
    """A line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*columns: object) -> str:
    """The first two lines of a table."""
    return row(*columns) + "\n|" + " --- |" * len(columns)


def markdown(corner: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A table of numbers, one row per name."""
    columns = list(columns)
    lines = [row(corner, *columns), "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*lines, *(row(name, *cells) for name, cells in rows.items())])
