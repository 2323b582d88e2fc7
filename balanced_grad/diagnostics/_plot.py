"""Pictures of a report and of a sample-size curve."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from balanced_grad.diagnostics._gap import Gap
from balanced_grad.pictures import GREEN, GREY, ORANGE, SKY, figure_class
from balanced_grad.subsets import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from balanced_grad.diagnostics._curve import SampleSizeCurve
    from balanced_grad.diagnostics._report import LatentQuality

COLOURS = {"helps": GREEN, "hurts": ORANGE, "inconclusive": GREY}
FEW = 16  # subsets that get a bar each


def plot_report(report: "LatentQuality", path: Path) -> None:
    """Risk of every subset beside the value of every modality, or of every nested pair if subsets are missing."""
    figure_of = figure_class("plot()")
    gaps = _gaps_to_show(report)
    few = len(report.latents) <= FEW
    height = 0.8 + 0.22 * max(len(report.latents) if few else 0, len(gaps), 6)
    figure = figure_of(figsize=(9, height), layout="constrained")
    left, right = figure.subplots(1, 2)
    unit = "nats" if report.settings["task"] == "classification" else "squared error"
    (_risks if few else _risks_by_size)(left, report, f"risk of the refitted head ({unit})")
    _intervals(right, gaps)
    right.set_xlabel(f"gap ({unit}); left of zero it helps")
    figure.savefig(path, dpi=150)


def plot_curve(curve: "SampleSizeCurve", path: Path) -> None:
    """Risk of every subset against the number of training items, with the spread over the seeds."""
    figure = figure_class("plot()")(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    sizes = list(curve.reports)
    for subset in filter(None, curve.reports[sizes[-1]].latents):
        by_seed = np.array([report[subset].losses.mean(1) for report in curve.reports.values()])
        axis.errorbar(sizes, by_seed.mean(1), by_seed.std(1), marker="o", ms=3, lw=1.2, label=label(subset))
    axis.set(xscale="log", xlabel="items for the encoders", ylabel="risk of the refitted head")
    axis.set_xticks(sizes, [str(items) for items in sizes])
    axis.minorticks_off()
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _gaps_to_show(report: "LatentQuality") -> dict[str, Gap]:
    if not report.complete:
        return {f"{label(m)} over {label(n)}": gap for (m, n), gap in report.gaps().items()}
    kinds = {"added last": report.added_last, "Shapley": report.shapley, "added first": report.added_first}
    return {f"{name}, {kind}": gap(name) for name in report.modalities for kind, gap in kinds.items()}


def _risks(axis: "Axes", report: "LatentQuality", what: str) -> None:
    rows = list(report.latents.values())[::-1]
    by_seed = np.array([latent.losses.mean(1) for latent in rows])
    axis.barh(range(len(rows)), by_seed.mean(1), xerr=by_seed.std(1), color=SKY, error_kw={"lw": 0.8})
    axis.set_yticks(range(len(rows)), [label(latent.trained_on) for latent in rows], fontsize=7)
    axis.set_xlabel(what)


def _risks_by_size(axis: "Axes", report: "LatentQuality", what: str) -> None:
    latents = list(report.latents.values())
    sizes = [len(latent.trained_on) for latent in latents]
    axis.plot([latent.risk for latent in latents], sizes, "o", ms=3, color=SKY)
    for size in sorted(set(sizes)):
        best = min((latent for latent in latents if len(latent.trained_on) == size), key=lambda latent: latent.risk)
        axis.annotate(f"  {label(best.trained_on)}", (best.risk, size + 0.15), fontsize=6.5)
    axis.set(xscale="log", xlabel=what, ylabel="modalities (the best of each number is named)")
    axis.margins(x=0.3, y=0.08)


def _intervals(axis: "Axes", gaps: dict[str, Gap]) -> None:
    rows = list(gaps.values())[::-1]
    for y, gap in enumerate(rows):
        axis.plot([gap.low, gap.high], [y, y], color=COLOURS[gap.verdict], lw=2)
        axis.plot(gap.value, y, "o", color=COLOURS[gap.verdict], ms=4)
    axis.axvline(0, color="black", lw=0.8)
    axis.set_yticks(range(len(rows)), list(gaps)[::-1], fontsize=7)
