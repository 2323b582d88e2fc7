"""Numbers with their intervals."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from balanced_grad.diagnosis._scores import Array
from balanced_grad.intervals import PairedBootstrap, bounds


@dataclass(frozen=True)
class Estimate:
    """A number and its interval.

    Attributes:
        value: the estimate.
        low, high: its interval, at the confidence of the report.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain numbers, ready for JSON."""
        return dict(self.__dict__)


class Intervals:
    """Estimates from rows over the items, all of one bootstrap, so that any two of them are paired."""

    def __init__(self, items: int, resamples: int, confidence: float, runs: int = 1) -> None:
        self._resampled = PairedBootstrap(items, resamples, runs)
        self._confidence = confidence

    def of(self, row: Array, deviation: float = 0.0) -> Estimate:
        """The mean of a row ``(N,)``; ``deviation`` is that over sampled orders."""
        low, high = bounds(self._resampled.means(row, deviation), self._confidence)
        return Estimate(float(row.mean()), low, high)

    def many(self, rows: Array, least: float = -np.inf, most: float = np.inf) -> list[Estimate]:
        """The means of rows ``(Q, N)`` that are known to be between two bounds; so are their intervals then."""
        drawn = self._resampled.means(rows)
        found = [bounds(draws, self._confidence) for draws in drawn]
        values = rows.mean(1).tolist()
        return [Estimate(v, max(low, least), min(high, most)) for v, (low, high) in zip(values, found, strict=True)]

    def ratio(self, row: Array, whole: Array, deviation: float = 0.0) -> Estimate | None:
        """The mean of a row over that of another; None where the other may be zero."""
        drawn = self._resampled.means(np.stack([row, whole]), np.array([deviation, 0.0]))
        low, _ = bounds(drawn[1], self._confidence)
        if low <= 0:
            return None
        low, high = bounds(drawn[0] / drawn[1].clip(min=np.finfo(float).tiny), self._confidence)
        return Estimate(float(row.mean() / whole.mean()), low, high)


def plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as what JSON knows."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, tuple | list) else value
