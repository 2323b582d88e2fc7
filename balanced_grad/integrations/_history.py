"""The picture of a training: losses, weights, and how the gradients lie to each other."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from balanced_grad.capture import JOINT
from balanced_grad.pictures import COLOURS, drawing, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {
    "loss": "loss",
    "weight": "weight of each loss",
    "norm": "gradient norm where losses meet",
    "cosine": "cosine of two gradients",
    "coefficient": "coefficient of each encoder",
    "factor": "factor of the guard",
    "belief": "belief in each loss",
}
_NAME = re.compile(rf"(?:^|/)({'|'.join(PANELS)})/(.+)$")
Curves = dict[str, tuple[list[float], list[float]]]


def plot_history(records: Iterable[Mapping[str, Any]] | str | Path, path: str | Path, *, smooth: int = 1) -> None:
    """Draw losses, weights, norms, cosines and factors over a training: a panel for each kind that was recorded.

    Args:
        records: ``StepLogger.records``, the file that ``JSONLines`` wrote, ``trainer.state.log_history`` of Hugging
            Face, or any mappings with names such as ``balance/weight/audio`` and, if there is one, ``step``.
        path: where the picture goes; its ending says the format.
        smooth: how many records a point is the mean of, the last of them at the point; default 1.

    Raises:
        ImportError: without matplotlib, which ``pip install 'balanced-grad[demo]'`` has.
        ValueError: where nothing of a balancer was recorded, or for ``smooth`` below 1.

    Examples:
        >>> import balanced_grad as bg, tempfile, pathlib
        >>> records = [{"step": s, "balance/loss/audio": 1 / (s + 1), "balance/weight/audio": 1.0} for s in range(9)]
        >>> picture = pathlib.Path(tempfile.mkdtemp()) / "history.png"
        >>> bg.plot_history(records, picture)
        >>> picture.exists()
        True
    """
    if smooth < 1:
        raise ValueError(f"smooth={smooth!r}: give a whole number of records, at least 1")
    curves = _curves(_read(Path(records)) if isinstance(records, str | Path) else records)
    if not curves:
        raise ValueError(
            f"nothing to draw: no record has a name such as 'balance/weight/audio' ({', '.join(PANELS)} are drawn); "
            "give StepLogger.records or trainer.state.log_history"
        )
    columns = min(len(curves), 2)
    rows = -(-len(curves) // columns)
    with drawing("plot_history", figsize=(4.5 * columns, 2.6 * rows)) as figure:
        axes = figure.subplots(rows, columns, squeeze=False).flat
        for kind, axis in zip(curves, axes, strict=False):
            _panel(axis, kind, curves[kind], smooth)
        for axis in list(axes)[len(curves) :]:
            axis.set_axis_off()
        write(figure, path)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def _curves(records: Iterable[Mapping[str, Any]]) -> dict[str, Curves]:
    """Kind -> name -> steps and values, in the order of the panels."""
    found: dict[str, Curves] = {}
    for place, record in enumerate(records):
        for key, value in record.items():
            match = _NAME.search(key)
            if match and value is not None:
                steps, values = found.setdefault(match[1], {}).setdefault(match[2], ([], []))
                steps.append(float(record.get("step", place)))
                values.append(float(value))
    return {kind: found[kind] for kind in PANELS if kind in found}


def _panel(axis: "Axes", kind: str, curves: Curves, smooth: int) -> None:
    for place, (name, (steps, values)) in enumerate(curves.items()):
        style = "--" if name == JOINT else "-"
        marker = "o" if len(values) <= 1 else None  # a line through a single point would be invisible
        means = [sum(part) / len(part) for part in (values[max(0, i + 1 - smooth) : i + 1] for i in range(len(values)))]
        axis.plot(steps, means, style, color=COLOURS[place % len(COLOURS)], label=name, marker=marker)
    axis.set(title=PANELS[kind], xlabel="step")
    axis.legend(loc="best")
