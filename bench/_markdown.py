"""Tables."""

from collections.abc import Iterable, Mapping


def markdown(corner: str, columns: Iterable[str], rows: Mapping[str, Iterable[str]]) -> str:
    """A table of numbers, one row per name."""
    columns = list(columns)
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join(lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()])
