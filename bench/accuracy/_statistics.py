"""The lines of a study, grouped by protocol, and what they say: means over seeds and paired differences."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from balanced_grad.demo._compare import spread
from balanced_grad.diagnostics import Gap, paired_gap
from bench.accuracy._evaluate import unpack
from bench.accuracy._methods import ALONE, BY_NAME
from bench.accuracy._study import OLD, Line, Protocol

RESAMPLES = 1000  # a report has a thousand differences


@dataclass(frozen=True)
class Group:
    """The runs of one protocol by method, in the order of the tables, each by seed."""

    protocol: Protocol
    runs: dict[str, dict[int, Line]]
    failed: dict[str, int]
    clusters: dict[int, Line] = field(default_factory=dict)  # by fold, which items belong together, where some do
    _gaps: dict[tuple[str, ...], Gap | None] = field(default_factory=dict, compare=False)

    @property
    def first(self) -> Line:
        """Any run: for what all have in common."""
        return next(iter(next(iter(self.runs.values())).values()))

    @property
    def modalities(self) -> list[str]:
        return self.first["modalities"]

    @property
    def kind(self) -> str:
        """What the groups of items are, in the plural."""
        return self.clusters[self.first["fold"]]["groups"]

    def count(self, split: str) -> int:
        """How many groups are in a part: of several folds those of all their test parts, and of one validation part."""
        ran = {run["fold"] for runs in self.runs.values() for run in runs.values()}
        folds = ran if split == "test" else {self.first["fold"]}
        return len({code for fold in folds for code in self.clusters[fold][split]})

    def values(self, method: str, read: Callable[[Line], float | None]) -> list[float]:
        """One number per seed; without those that have none."""
        numbers = [read(line) for line in self.runs[method].values()]
        return [number for number in numbers if number is not None]

    def gaps(self, method: str, modality: str, split: str = "test") -> list[float]:
        """Probe accuracy minus that of the encoder of the same seed trained alone, per seed that has both."""
        alone = self.runs.get(ALONE.name, {})
        seeds = [seed for seed in self.runs[method] if seed in alone]
        return [
            self.runs[method][seed]["probe"][split][modality] - alone[seed]["probe"][split][modality] for seed in seeds
        ]

    def difference(self, method: str, rule: str, other: str, other_rule: str) -> Gap | None:
        """Difference of the test *errors*, a fraction, paired by seed and item; None without a seed in common."""
        asked = (method, rule, other, other_rule)
        if asked not in self._gaps:
            self._gaps[asked] = self._difference(*asked)
        return self._gaps[asked]

    def _difference(self, method: str, rule: str, other: str, other_rule: str) -> Gap | None:
        seeds = sorted(self.runs.get(method, {}).keys() & self.runs.get(other, {}).keys())
        if not seeds or (method, rule) == (other, other_rule):
            return None
        (first, members), (second, _) = self.errors(method, rule, seeds), self.errors(other, other_rule, seeds)
        gap = paired_gap(first, second, groups=members, resamples=RESAMPLES)
        if len(gap.seeds) == len(seeds):
            return gap
        mine, theirs = self.runs[method], self.runs[other]
        by_seed = (wrong(mine[seed], rule).mean() - wrong(theirs[seed], other_rule).mean() for seed in seeds)
        return replace(gap, seeds=tuple(map(float, by_seed)))

    def errors(self, method: str, rule: str, seeds: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """1.0 for each test item a seed got wrong, ``(seeds, items)``, and the group of each item, where it has one.

        Folds test other items, which come one after the other in a single row: the mean over the seeds of each fold.
        That those of a fold share its network is left out (ours): an interval of ten people may be a little narrow.
        """
        runs, folds = self.runs[method], {}
        for seed in seeds:
            folds.setdefault(runs[seed]["fold"], []).append(wrong(runs[seed], rule))
        parts = [np.stack(part) for part in folds.values()]
        errors = parts[0] if len(parts) == 1 else np.concatenate([part.mean(0) for part in parts])[None]
        members = [np.array(self.clusters[fold]["test"]) for fold in folds if fold in self.clusters]
        return errors, np.concatenate(members) if members else None


def wrong(line: Line, rule: str) -> np.ndarray:
    """1.0 per test item that the rule got wrong."""
    return 1.0 - unpack(line["rules"][rule]["correct"], line["items"]["test"])


def read(folder: Path) -> list[Group]:
    """All groups of a folder, by data set and optimizer, methods in the order of the tables."""
    lines = [json.loads(text) for path in sorted(folder.glob("accuracy-*.jsonl")) for text in whole_lines(path)]
    found: dict[Protocol, list[Line]] = {}
    clusters: dict[str, dict[int, Line]] = {}
    for line in (OLD | line for line in lines):
        if line["kind"] == "run":
            protocol = Protocol(**{key.name: line[key.name] for key in fields(Protocol)})
            found.setdefault(protocol, []).append(line)
        elif line["kind"] == "groups":
            clusters.setdefault(line["dataset"], {})[line["fold"]] = line
    groups = [group(protocol, runs, clusters.get(protocol.dataset, {})) for protocol, runs in found.items()]
    return [each for each in groups if each.runs]


def group(protocol: Protocol, lines: list[Line], clusters: dict[int, Line]) -> Group:
    runs: dict[str, dict[int, Line]] = {}
    failed: dict[str, int] = {}
    for name in in_order(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == name]
        done = {line["seed"]: line for line in sorted(own, key=lambda line: line["seed"]) if "failed" not in line}
        if done:
            runs[name] = done
        if len(done) < len(own):
            failed[name] = len(own) - len(done)
    return Group(protocol, runs, failed, clusters)


def in_order(names: Iterable[str]) -> list[str]:
    """Each method once, in the order of the tables; those from outside come last, by name."""
    found = set(names)
    return [name for name in BY_NAME if name in found] + sorted(found - BY_NAME.keys())


def whole_lines(path: Path) -> list[str]:
    """Lines that were written to their end."""
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def mean_and_deviation(values: list[float], sign: str = "", digits: int = 1) -> str:
    """``mean ± deviation`` over the seeds; one seed has no deviation, no seed no number."""
    if not values:
        return ""
    mean, deviation = spread(values)
    return f"{round(mean, digits) + 0.0:{sign}.{digits}f}" + (f" ± {deviation:.{digits}f}" if len(values) > 1 else "")


def points(gap: Gap | None) -> str:
    """A difference of errors as points of accuracy with its interval; in bold where that leaves out zero."""
    if gap is None:
        return ""
    value, low, high = (round(-100 * x, 1) + 0.0 for x in (gap.value, gap.high, gap.low))  # + 0.0: no "-0.0"
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if gap.verdict != "inconclusive" else text


def number(line: Line, *path: str) -> Any:
    """An entry of a line by its path; None where it is missing."""
    value: Any = line
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value
