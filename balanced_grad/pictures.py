"""Pictures: one style and one set of colours for all of them, light or dark; matplotlib is loaded when one is drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers too; the greys are read on white and on black.
GREY, ORANGE, BLUE, GREEN, PINK, YELLOW, SKY = (
    "#7f7f7f",
    "#d55e00",
    "#0072b2",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
COLOURS = (GREY, ORANGE, BLUE, GREEN, PINK, YELLOW, SKY)
STYLE: Any = {  # for rc_context, whose stub knows no plain dict of mixed values
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.color": "#dddddd",
    "lines.linewidth": 1.4,
    "lines.markersize": 3,
}
_INK = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
DARK: Any = dict.fromkeys(_INK, "#dddddd") | {"grid.color": "#444444", "savefig.facecolor": "none"}
DARK |= {"figure.facecolor": "none", "axes.facecolor": "none"}


def figure_class(who: str) -> "type[Figure]":
    """Matplotlib's figure, which needs no display; whoever asks for it is named where it is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{who} needs matplotlib: pip install 'balanced-grad[demo]'") from error
    return Figure


@contextmanager
def drawing(who: str, *, dark: bool = False, **size: Any) -> Iterator["Figure"]:
    """A figure in the style."""
    figure = figure_class(who)
    from matplotlib import rc_context

    with rc_context(STYLE | (DARK if dark else {})):
        yield figure(layout="constrained", **size)


def write(figure: "Figure", path: str | Path) -> None:
    """Into a file whose ending says the format."""
    figure.savefig(path, dpi=150)
