"""Does γ track accuracy? All modalities against each subset: γ of a refitted head, and what the networks gain.

The demo's networks and recipe, trained with the fused loss alone (``bench.latent_quality real``). γ is in nats, and
below zero where all modalities have the better latent. The gain in points is of the networks with their own heads,
which γ never sees; that of the refitted head is shown beside it. Up to three modalities: every subset; more: those of
one modality, and those without one. The rank correlation is Spearman's of -γ and the gain. Subsets of a set share the
networks of all modalities and are no independent draws, so its interval resamples the sets, not the rows.
"""

import json
from collections.abc import Iterable
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from balanced_grad.diagnostics import Model, Train, latent_quality
from balanced_grad.pictures import COLOURS, drawing, write
from bench import _markdown as markdown
from bench.accuracy._data import load
from bench.accuracy._study import RESULTS
from bench.latent_quality import trainer

Array = npt.NDArray[np.float64]
Row = dict[str, Any]
DATASETS = (
    *("digits", "leaf", "cells", "watch", "wiki", "mosi", "mfeat", "mvmnist"),
    *("redundant", "unique", "synergy"),
)
OUT = RESULTS / "latent-gains.jsonl"
MARKS = ("o", "s", "^")  # with the colours, enough for 21 sets
FEW = 4  # subsets from which a set has a correlation of its own
RESAMPLES = 1000


def chosen(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Subsets to compare with all."""
    sizes = range(1, len(names)) if len(names) <= 3 else (1, len(names) - 1)
    return [subset for size in sizes for subset in combinations(names, size)]


class Recorded:
    """A recipe that keeps the test accuracy of every network with its own head."""

    def __init__(self, train: Train, test: dict[str, Tensor], labels: Tensor) -> None:
        self.train, self.test, self.labels = train, test, labels
        self.accuracy: dict[tuple[str, ...], list[float]] = {}

    def __call__(self, inputs: dict[str, Tensor], targets: Tensor, seed: int) -> Model:
        model: Any = self.train(inputs, targets, seed)  # the demo's networks have a head, which a Model need not
        names = tuple(inputs)
        with torch.no_grad():
            logits = model.head(model.encode({name: self.test[name] for name in names}))
        hits = (logits.argmax(1) == self.labels).double().mean().item()
        self.accuracy.setdefault(names, []).append(100 * hits)
        return model


def measure(name: str, seeds: int) -> list[Row]:
    """A row per subset of one data set."""
    data = load(name)
    everything = tuple(data.shapes)
    subsets = chosen(everything)
    train = Recorded(trainer("joint", data.classes), data.test.inputs, data.test.labels)
    items, test = ((split.inputs, split.labels) for split in (data.train, data.test))
    found = latent_quality(train, items, test, subsets=[everything, *subsets], seeds=seeds)
    rows = []
    for subset in subsets:
        gap = found.gap(everything, subset)
        own = [x - y for x, y in zip(train.accuracy[everything], train.accuracy[subset], strict=True)]
        numbers = {"gap": gap.value, "low": gap.low, "high": gap.high, "points": gap.points, "own": own}
        rows.append({"data": name, "seeds": seeds, "subset": "+".join(subset), "verdict": gap.verdict, **numbers})
    return rows


def correlation(rows: Iterable[Row]) -> float:
    """Spearman's, of -γ and what the networks gain."""
    pairs = np.array([(-row["gap"], np.mean(row["own"])) for row in rows])
    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def interval(by_set: dict[str, list[Row]]) -> tuple[float, float]:
    """95 % of the correlation over all rows, when sets are drawn anew."""
    rng, names = np.random.default_rng(0), list(by_set)
    drawn = [
        correlation(row for name in rng.choice(names, len(names)) for row in by_set[name]) for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def report(datasets: list[str], seeds: int, out: Path, plot: Path | None) -> str:
    """Measure what is not in the file, and print the rows and correlations."""
    rows = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {(row["data"], row["seeds"]) for row in rows}
    for name in tqdm([name for name in datasets if (name, seeds) not in done], disable=None, unit="set"):
        rows += (new := measure(name, seeds))
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in new)
    by_set = {n: [row for row in rows if (row["data"], row["seeds"]) == (n, seeds)] for n in datasets}
    if plot:
        draw_picture(by_set, plot)
    return f"{table(by_set)}\n\n{summary(by_set)}"


def table(by_set: dict[str, list[Row]]) -> str:
    """A row per subset."""
    lines = [markdown.header("all against", "gamma, nats", "verdict", "points, refitted head", "points, networks")]
    for row in (row for rows in by_set.values() for row in rows):
        gap = f"{row['gap']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        cells = (gap, row["verdict"], f"{row['points']:+.1f}", markdown.mean_and_error(row["own"], "+.1f"))
        lines.append(markdown.row(f"{row['data']}: {row['subset']}", *cells))
    return "\n".join(lines)


def summary(by_set: dict[str, list[Row]]) -> str:
    """Rank correlations and agreement in sign, by set and over all."""
    lines = [markdown.header("set", "subsets", "rank correlation", "same sign", "same sign, where gamma has a verdict")]
    sets = by_set | {"all": [row for rows in by_set.values() for row in rows]}
    for name, rows in sets.items():
        found = f"{correlation(rows):+.2f}" if len(rows) >= FEW else ""
        if name == "all" and len(by_set) > 1:
            found += " [{:+.2f}, {:+.2f}]".format(*interval(by_set))
        sure = [row for row in rows if row["verdict"] != "inconclusive"]
        agree = [sum(row["gap"] * np.mean(row["own"]) < 0 for row in some) for some in (rows, sure)]
        lines.append(markdown.row(name, len(rows), found, f"{agree[0]} of {len(rows)}", f"{agree[1]} of {len(sure)}"))
    return "\n".join(lines)


def draw_picture(by_set: dict[str, list[Row]], path: Path) -> None:
    """A point per subset."""
    with drawing("--plot", figsize=(5.5, 3.8)) as figure:
        axis = figure.subplots()
        for (name, rows), (mark, colour) in zip(by_set.items(), product(MARKS, COLOURS), strict=False):
            points = [float(np.mean(row["own"])) for row in rows]
            axis.plot([row["gap"] for row in rows], points, mark, ms=4, color=colour, label=name)
        axis.axhline(0, color="black", lw=0.8)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_xscale("symlog", linthresh=0.05)
        axis.set(xlabel="gamma in nats; left of zero all modalities are better", ylabel="accuracy gained, points")
        axis.legend(ncols=2)
        write(figure, path)
