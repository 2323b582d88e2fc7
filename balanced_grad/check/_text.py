import textwrap
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from balanced_grad.check._names import collapsed
from balanced_grad.tables import side_by_side

_WIDTH = 120
_LONGEST = 300  # characters of an error that are shown
_PACKAGE = str(Path(__file__).parent.parent)


def table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Columns side by side; a last column that does not fit goes on in the lines below."""
    rows = list(rows)
    starts = side_by_side([row[:-1] for row in rows], right=False)
    return [line for start, row in zip(starts, rows, strict=True) for line in wrapped(f"  {start}  ", row[-1])]


def wrapped(first: str, text: str) -> list[str]:
    """The text behind ``first``, later lines below its start; names are not broken."""
    room = max(_WIDTH - len(first), _WIDTH // 3)
    lines = textwrap.wrap(text, room, break_long_words=False, break_on_hyphens=False) or [""]
    below = " " * len(first)
    return [f"{below if number else first}{line}".rstrip() for number, line in enumerate(lines)]


def listed(names: Sequence[str]) -> str:
    """Names for reading: alike ones as one, separated by commas."""
    counts = Counter(names)
    several = [f"{count} of: {name}" for name, count in counts.items() if count > 1]
    return ", ".join([*collapsed([name for name in counts if counts[name] == 1]), *several])


def size(count: int) -> str:
    """Bytes in the unit that reads best."""
    number = float(count)
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} GB"


def said(error: Exception) -> str:
    """An error for the report: what the balancer says itself, or the type of another one in front."""
    frames = traceback.extract_tb(error.__traceback__)
    message = textwrap.shorten(str(error), _LONGEST, placeholder=" ...")
    ours = bool(frames) and frames[-1].filename.startswith(_PACKAGE)
    return message if ours else f"{type(error).__name__}: {message}"
