"""The picture: weights over time, accuracy of each modality over time, the gap that balancing closes."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from balanced_grad.demo._compare import Results, spread
from balanced_grad.demo._data import Dataset
from balanced_grad.demo._train import ALONE, BASELINE, JOINT
from balanced_grad.pictures import COLOURS, STYLE

METHOD_COLOURS = COLOURS  # a method keeps its colour in every panel
LOSS_COLOURS = ("#000000", "#88ccee", "#117733", "#cc6677", "#332288", "#ddaa33", "#aa4499", "#44aa99")
COLUMNS = 3


def plot(data: Dataset, results: Results, path: Path) -> None:
    """Write the picture, 9 inches wide."""
    weights = _weights_to_show(results)
    rows = [-(-len(panels) // COLUMNS) for panels in (weights, results.modalities)]
    heights = [2.1 * rows[0] + 0.4, 2.0 * rows[1] + 0.4, 2.5]
    seeds = len(results.runs[BASELINE.name])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, sum(heights) + 0.5), layout="constrained")
        grid = figure.add_gridspec(3, 1, height_ratios=heights)
        parts = [figure.add_subfigure(grid[i]) for i in range(3)]
        figure.suptitle(
            f"{data.name}: {data.title}\n"
            + (f"mean of {seeds} seeds; bands and error bars: standard deviation" if seeds > 1 else "one seed")
        )
        _weights(parts[0], results, weights)
        _accuracies(parts[1], results)
        _gaps(parts[2], results)
        figure.savefig(path, dpi=200)


def _weights_to_show(results: Results) -> list[str]:
    """Find the methods whose weights move; if there is none, all that have weights."""
    balanced = {method: runs[0].weights for method, runs in results.runs.items() if runs[0].weights}
    moving = [method for method, weights in balanced.items() if np.ptp(list(weights.values())) > 1e-6]
    return moving or list(balanced)


def _weights(part: SubFigure, results: Results, methods: Sequence[str]) -> None:
    constant = [m for m, runs in results.runs.items() if runs[0].weights and m not in methods]
    _title(part, "(a) weight of each loss" + (f" (constant for {', '.join(constant)})" if constant else ""))
    axes = _panels(part, methods)
    for ax, method in zip(axes, methods, strict=True):
        for i, loss in enumerate((JOINT, *results.modalities)):
            # Dashes for the joint loss, so that it shows where it coincides with another.
            style = "--" if loss == JOINT else "-"
            colour = LOSS_COLOURS[i % len(LOSS_COLOURS)]
            _curve(ax, [run.weights[loss] for run in results.runs[method]], loss, colour, style)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("weight (mean of the epoch)")
    _legend(part, axes[0], "loss")


def _accuracies(part: SubFigure, results: Results) -> None:
    _title(part, "(b) accuracy of each uni-modal head during training")
    axes = _panels(part, results.modalities)
    for i, (ax, modality) in enumerate(zip(axes, results.modalities, strict=True)):
        for method, colour in _colours(results).items():
            style = ":" if method == ALONE.name else "-"
            _curve(ax, [run.val[modality] for run in results.runs[method]], method, colour, style)
        if i % COLUMNS == 0:
            ax.set_ylabel("validation accuracy (%)")
    _legend(part, axes[0], "method")


def _gaps(part: SubFigure, results: Results) -> None:
    _title(part, "(c) under-optimisation: linear probe of the encoder, minus that of the encoder trained alone")
    (ax,) = _panels(part, [""])
    colours = _colours(results)
    del colours[ALONE.name]
    width = 0.8 / len(colours)
    for k, (method, colour) in enumerate(colours.items()):
        means, deviations = zip(*(spread(gap) for gap in results.gaps(method).values()), strict=True)
        x = np.arange(len(means)) + (k - (len(colours) - 1) / 2) * width
        ax.bar(x, means, 0.9 * width, yerr=deviations, color=colour, label=method, error_kw={"lw": 0.8})
    ax.axhline(0, color="black", lw=0.8)
    ax.set_xticks(range(len(results.modalities)), results.modalities)
    ax.set_ylabel("test accuracy (points)")
    _legend(part, ax, "method")


def _colours(results: Results) -> dict[str, str]:
    return {method: METHOD_COLOURS[i % len(METHOD_COLOURS)] for i, method in enumerate(results.runs)}


def _curve(ax: Axes, series: Sequence[Sequence[float]], label: str, colour: str, style: str) -> None:
    """Mean over seeds by epoch, with a band of one deviation."""
    mean, deviation = np.array([spread(epoch) for epoch in zip(*series, strict=True)]).T
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    epochs = np.arange(1, len(mean) + 1)
    marker = "o" if len(mean) == 1 else None  # a line through a single epoch would be invisible
    ax.plot(epochs, mean, style, color=colour, label=label, marker=marker)
    ax.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.15, lw=0)


def _panels(part: SubFigure, titles: Sequence[str]) -> list[Axes]:
    """One panel per title, in rows of three."""
    columns = min(len(titles), COLUMNS)
    grid = part.add_gridspec(-(-len(titles) // columns), columns)
    return [part.add_subplot(grid[i // columns, i % columns], title=title) for i, title in enumerate(titles)]


def _title(part: SubFigure, text: str) -> None:
    part.suptitle(text, x=0.01, ha="left", fontsize=9.5, fontweight="bold")


def _legend(part: SubFigure, ax: Axes, title: str) -> None:
    handles, labels = ax.get_legend_handles_labels()
    part.legend(handles, labels, title=title, loc="outside right center", alignment="left")
