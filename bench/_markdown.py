"""Tables, whole or line by line as results come in."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence


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


def mean_and_error(values: Sequence[float], form: str = ".1f") -> str:
    """Mean and standard error, the latter where there are two values or more."""
    mean = f"{statistics.fmean(values):{form}}"
    if len(values) < 2:
        return mean
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {error:{form.lstrip('+')}}"
