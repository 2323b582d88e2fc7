"""The figure of one group: accuracy against subroutine time, probe gaps, weights over training."""

from itertools import zip_longest
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from balanced_grad.demo._compare import spread
from balanced_grad.demo._plot import LOSS_COLOURS
from balanced_grad.pictures import STYLE
from bench.accuracy._methods import ALONE, BASELINE
from bench.accuracy._objectives import JOINT
from bench.accuracy._statistics import Group, number

COLUMNS = 4


def figure(group: Group, path: Path) -> None:
    """Write the figure as PNG."""
    weighted = [name for name in group.runs if moves(group, name)]
    rows = -(-len(weighted) // COLUMNS)
    with mpl.rc_context(STYLE):
        page = Figure(figsize=(9, 6.2 + 1.7 * rows), layout="constrained")
        grid = page.add_gridspec(2 + bool(rows), 1, height_ratios=[3.2, 3.0] + ([1.7 * rows] if rows else []))
        axes = page.add_subfigure(grid[0]).subplots()
        pareto(axes, group)
        axes = page.add_subfigure(grid[1]).subplots()
        probe_gaps(axes, group)
        if rows:
            panels = page.add_subfigure(grid[2]).subplots(rows, COLUMNS, squeeze=False)
            for axes, name in zip_longest(panels.flat, weighted):
                weights(axes, group, name) if name else axes.set_visible(False)
            page.legend(handles=legend(group), loc="outside lower center", ncols=7)
        path.parent.mkdir(parents=True, exist_ok=True)
        page.savefig(path, dpi=130)


def pareto(axes: Axes, group: Group) -> None:
    """Test accuracy of the fused prediction (filled) and of the fitted product (hollow), by subroutine time."""
    for name in group.runs:
        cost = mean(group.values(name, lambda line: line["ms"]["subroutine"] / line["ms"]["joint_subroutine"]))
        means = []
        for rule, face in (("fused", "#0072b2"), ("fitted", "none")):
            found = group.values(name, lambda line, rule=rule: number(line, "rules", rule, "test", "accuracy"))
            value, deviation = spread(found)
            axes.errorbar(cost, value, deviation, fmt="o", color="#0072b2", mfc=face, ms=5, lw=0.8)
            means.append(value)
        axes.annotate(name, (cost, max(means)), xytext=(3, 4), textcoords="offset points", fontsize=7)
        axes.plot([cost, cost], means, color="#999999", lw=0.7, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="subroutine time / that of joint training", ylabel="test accuracy, %")
    axes.set_title("filled: the method's own prediction; hollow: product with fitted weights", loc="left")


def probe_gaps(axes: Axes, group: Group) -> None:
    """Gap of each encoder under every method, joint training, the state before balancing, first."""
    names = [BASELINE.name] * (BASELINE.name in group.runs)
    names += [name for name in group.runs if name not in (ALONE.name, BASELINE.name)]
    width = 0.8 / len(group.modalities)
    for i, modality in enumerate(group.modalities):
        found = [group.gaps(name, modality) for name in names]
        bars = [spread(values) if values else (np.nan, 0.0) for values in found]
        x = np.arange(len(names)) + (i - (len(group.modalities) - 1) / 2) * width
        style: dict[str, Any] = {"color": colour(group, modality), "label": modality}
        axes.bar(x, [b[0] for b in bars], width, yerr=[b[1] for b in bars], error_kw={"lw": 0.7}, **style)
    axes.axhline(0, color="black", lw=0.6)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_ylabel("probe gap, points")
    axes.legend(ncols=6, loc="best", fontsize=7)


def weights(axes: Axes, group: Group, name: str) -> None:
    """Mean weight of every loss, or coefficient of every encoder, by epoch."""
    for loss, series in mean_series(group, name).items():
        axes.plot(np.arange(1, len(series) + 1), series, color=colour(group, loss))
    axes.set_title(name, loc="left")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def mean_series(group: Group, name: str) -> dict[str, np.ndarray]:
    """Weights by epoch, the mean over the seeds."""
    runs = list(group.runs[name].values())
    return {loss: np.mean([run["weights"][loss] for run in runs], axis=0) for loss in runs[0]["weights"]}


def moves(group: Group, name: str) -> bool:
    """Whether there is a curve to draw."""
    return any(np.ptp(series) > 0 for series in mean_series(group, name).values())


def colour(group: Group, loss: str) -> str:
    return LOSS_COLOURS[[JOINT, *group.modalities].index(loss) % len(LOSS_COLOURS)]


def legend(group: Group) -> list[Line2D]:
    return [Line2D([], [], color=colour(group, loss), label=loss) for loss in (JOINT, *group.modalities)]
