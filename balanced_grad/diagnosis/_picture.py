"""The picture of a report: verdicts, what each modality is worth, every subset, and what is left without some."""

from pathlib import Path
from typing import TYPE_CHECKING

from balanced_grad.diagnosis._estimates import Estimate
from balanced_grad.diagnosis._text import said, short, shown_subsets, unit
from balanced_grad.pictures import BLUE, COLOURS, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, drawing, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from balanced_grad.diagnosis._report import Diagnosis

VERDICTS = {
    "used": GREEN,
    "relies on interaction": BLUE,
    "barely used": YELLOW,
    "ignored": GREY,
    "hurts": ORANGE,
    "inconclusive": PINK,
}


def save_picture(report: "Diagnosis", path: Path, *, dark: bool = False) -> None:
    """Write the four panels, 9 inches wide; the name's ending says the format."""
    rows = max(len(report.modalities), 3), max(len(shown_subsets(report)), 6)
    heights = [0.9 + 0.28 * rows[0], 0.9 + 0.2 * rows[1]]
    with drawing("the picture", dark=dark, figsize=(9, sum(heights))) as figure:
        axes = figure.subplots(2, 2, height_ratios=heights)
        _shares(axes[0, 0], report)
        _places(axes[0, 1], report)
        _subsets(axes[1, 0], report)
        _robustness(axes[1, 1], report)
        _finished(figure)
        write(figure, path)


def _finished(figure: "Figure") -> None:
    for axis in figure.axes:
        axis.title.set_fontweight("bold")
        axis.title.set_horizontalalignment("left")
        axis.title.set_x(0)


def _shares(axis: "Axes", report: "Diagnosis") -> None:
    for y, (name, each) in enumerate(report.contributions.items()):
        colour = VERDICTS[each.verdict]
        if each.share is not None:
            share = each.share
            _interval(axis, y, Estimate(100 * share.value, 100 * share.low, 100 * share.high), colour)
        axis.annotate(f"{short(name)}: {each.verdict}", (0.0, y - 0.32), (0.01, y - 0.32), ("axes fraction", "data"),
                      fontsize=8)  # fmt: skip
    axis.set(title="(a) share of what all modalities are worth, %", yticks=[])
    axis.set_ylim(len(report.contributions) - 0.5, -0.7)
    _zero(axis)


def _places(axis: "Axes", report: "Diagnosis") -> None:
    kinds = {"added first": ("first", SKY), "Shapley value": ("shapley", BLUE), "added last": ("last", ORANGE)}
    for place, (what, (kind, colour)) in enumerate(kinds.items()):
        for y, each in enumerate(report.contributions.values()):
            _interval(axis, y + 0.25 * (place - 1), getattr(each, kind), colour, what if y == 0 else None)
    axis.set(title=f"(b) risk saved, {unit(report)}")
    axis.set_yticks(range(len(report.modalities)), [short(name) for name in report.modalities])
    axis.set_ylim(len(report.modalities) - 0.5, -0.5)
    axis.legend(loc="best")
    _zero(axis)


def _subsets(axis: "Axes", report: "Diagnosis") -> None:
    shown = shown_subsets(report)
    for y, subset in enumerate(shown):
        found = report.subsets[subset]
        _interval(axis, y, found.risk if found.accuracy is None else found.accuracy, BLUE)
    what = "accuracy, %" if report.robustness.measure == "accuracy" else f"risk, {unit(report)}"
    axis.set(title=f"(c) {what}, with some of the modalities")
    axis.set_yticks(range(len(shown)), [short(said(subset, report.modalities), 28) for subset in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.grid(axis="x")


def _robustness(axis: "Axes", report: "Diagnosis") -> None:
    curves = report.robustness
    rates = [100 * rate for rate in curves.rates]
    lines = {"any, at random": curves.random} | {f"only {short(name)}": each for name, each in curves.without.items()}
    if curves.heads is not None:
        lines["at random, product of heads"] = curves.heads
    for place, (name, line) in enumerate(lines.items()):
        colour = COLOURS[place % len(COLOURS)]
        axis.plot(rates, [each.value for each in line], color=colour, label=name)
        axis.fill_between(
            rates, [each.low for each in line], [each.high for each in line], color=colour, alpha=0.15, lw=0
        )
    what = "accuracy, %" if curves.measure == "accuracy" else f"risk, {unit(report)}"
    axis.set(title=f"(d) {what}, where modalities are missing", xlabel="missing, % of items")
    axis.legend(loc="best")


def _interval(axis: "Axes", y: float, estimate: Estimate, colour: str, label: str | None = None) -> None:
    axis.plot([estimate.low, estimate.high], [y, y], color=colour, lw=2, solid_capstyle="butt")
    axis.plot(estimate.value, y, "o", color=colour, ms=4, label=label)


def _zero(axis: "Axes") -> None:
    axis.axvline(0, color=GREY, lw=0.8)
    axis.grid(axis="x")
    axis.grid(visible=False, axis="y")
