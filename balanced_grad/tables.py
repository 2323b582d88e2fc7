"""Tables as text."""

from collections.abc import Sequence

_GAP = "  "


def side_by_side(rows: Sequence[Sequence[str]], *, right: bool = True, least: Sequence[int] = ()) -> list[str]:
    """A line per row, its cells in columns as wide as the widest of each.

    A row with fewer cells than the first one is a note: it makes no column wider.

    Args:
        rows: cells; the first row says how many columns there are.
        right: whether all columns but the first, numbers that is, end at the right; else they start at the left.
        least: how wide the columns are at the least; the last width is that of all others.
    """
    columns = len(rows[0]) if rows else 0
    widths = [max(len(row[column]) for row in rows if len(row) == columns) for column in range(columns)]
    if least:
        widths = [max(width, least[min(column, len(least) - 1)]) for column, width in enumerate(widths)]

    def padded(row: Sequence[str]) -> list[str]:
        cells = zip(row, widths, strict=False)
        return [
            cell.rjust(width) if right and place else cell.ljust(width) for place, (cell, width) in enumerate(cells)
        ]

    return [_GAP.join(padded(row)) for row in rows]
