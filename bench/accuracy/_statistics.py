"""The lines of a study, grouped by protocol, and what they say: means over seeds and paired differences."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
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
    _gaps: dict[tuple[str, ...], Gap | None] = field(default_factory=dict, compare=False)

    @property
    def first(self) -> Line:
        """Any run: for what all have in common."""
        return next(iter(next(iter(self.runs.values())).values()))

    @property
    def modalities(self) -> list[str]:
        return self.first["modalities"]

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
        mine, theirs = self.runs.get(method, {}), self.runs.get(other, {})
        seeds = sorted(mine.keys() & theirs.keys())
        if not seeds or (method, rule) == (other, other_rule):
            return None
        first, second = (
            np.stack([wrong(runs[seed], own) for seed in seeds]) for runs, own in ((mine, rule), (theirs, other_rule))
        )
        return paired_gap(first, second, resamples=RESAMPLES)


def wrong(line: Line, rule: str) -> np.ndarray:
    """1.0 per test item that the rule got wrong."""
    return 1.0 - unpack(line["rules"][rule]["correct"], line["items"]["test"])


def read(folder: Path) -> list[Group]:
    """All groups of a folder, by data set and optimizer, methods in the order of the tables."""
    lines = [json.loads(text) for path in sorted(folder.glob("accuracy-*.jsonl")) for text in whole_lines(path)]
    found: dict[Protocol, list[Line]] = {}
    for line in lines:
        if line["kind"] == "run":
            protocol = Protocol(**{key.name: (OLD | line)[key.name] for key in fields(Protocol)})
            found.setdefault(protocol, []).append(line)
    groups = [group(protocol, runs) for protocol, runs in found.items()]
    return [each for each in groups if each.runs]


def group(protocol: Protocol, lines: list[Line]) -> Group:
    runs: dict[str, dict[int, Line]] = {}
    failed: dict[str, int] = {}
    for name in in_order(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == name]
        done = {line["seed"]: line for line in sorted(own, key=lambda line: line["seed"]) if "failed" not in line}
        if done:
            runs[name] = done
        if len(done) < len(own):
            failed[name] = len(own) - len(done)
    return Group(protocol, runs, failed)


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
