"""What each modality is worth to the model: differences between its subsets, and what they say in a word."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from balanced_grad.diagnosis._estimates import Estimate, Intervals, plain
from balanced_grad.diagnosis._scores import Array
from balanced_grad.diagnosis._subsets import Outcome, row_of
from balanced_grad.subsets import Subset, shapley_contrast

Verdict = Literal["used", "barely used", "ignored", "relies on interaction", "hurts", "inconclusive"]
"""What a modality is to a model: see `balanced_grad.diagnosis.Contribution.verdict`."""
IGNORED, BARELY = 0.01, 0.05  # shares of what all modalities are worth


@dataclass(frozen=True)
class Contribution:
    """What one modality is worth on held-out items; above zero, it lowers the risk.

    Attributes:
        verdict: ``"ignored"`` if the interval of ``share`` is within ±1 %, ``"hurts"`` if below -1 %,
            ``"barely used"`` if within ±5 %, ``"used"`` if above 5 %, but then ``"relies on interaction"`` if
            ``first`` is certainly less than half of ``shapley``; else ``"inconclusive"``.
        shapley: mean gain over all orders of adding modalities, in units of the loss; they sum to the gain of all.
        share: of that gain; None where the gain of all is not certainly above zero.
        first: gain from it alone, over nothing.
        last: gain from it beside all others.
        interaction: ``1 - first / shapley``: the share that others must be there for; below zero where they know
            the same. None where ``shapley`` is not certainly above zero.
        points: the Shapley value of the accuracy, in percentage points; None for a regression.
        moved: share of predictions that change when it alone is absent (regression: root mean square of the
            change, over the deviation of the predictions). Much of it without gain is noise that was memorised.
    """

    verdict: Verdict
    shapley: Estimate
    share: Estimate | None
    first: Estimate
    last: Estimate
    interaction: Estimate | None
    points: Estimate | None
    moved: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


class Worth:
    """Gains of a modality, as rows over the items; over sampled orders, a row for each pair of orders."""

    def __init__(
        self, outcomes: Mapping[Subset, Outcome], modalities: Subset, orders: Sequence[Sequence[str]] | None
    ) -> None:
        self._losses = {subset: outcome.losses for subset, outcome in outcomes.items()}
        self._hits = {subset: outcome.hits for subset, outcome in outcomes.items() if outcome.hits is not None}
        self._modalities = modalities
        self._orders = orders

    def gain(self, subset: Sequence[str], modality: str) -> Array:
        """Loss without it less loss with it ``(N,)``."""
        return -self._change(self._losses, subset, modality)

    def right(self, subset: Sequence[str], modality: str) -> Array:
        """Points of accuracy with it less those without it."""
        return 100 * self._change(self._hits, subset, modality)

    def subset(self, subset: Subset) -> tuple[Array, Array | None]:
        """Loss, and percent right, with a subset."""
        donors = self._donors(subset)
        hits = 100 * row_of(self._hits[subset], donors) if self._hits else None
        return row_of(self._losses[subset], donors), hits

    def _change(self, parts: Mapping[Subset, Array], subset: Sequence[str], modality: str) -> Array:
        return row_of(parts[self._set([*subset, modality])] - parts[self._set(subset)], self._donors(subset))

    def _donors(self, subset: Sequence[str]) -> list[int]:
        return [place for place, name in enumerate(self._modalities) if name not in subset]

    def shapley(self, modality: str, *, points: bool = False) -> tuple[Array, float]:
        """Mean gain over the orders ``(N,)``, and the deviation of its mean over pairs of sampled orders."""
        gain = self.right if points else self.gain
        if self._orders is None:
            shares = shapley_contrast(self._modalities, modality)
            others = [subset for subset in shares if modality not in subset]
            return sum((-shares[subset] * gain(subset, modality) for subset in others), np.zeros(1)), 0.0
        rows = np.stack([gain(order[: order.index(modality)], modality) for order in self._orders])
        pairs = rows.reshape(-1, 2, rows.shape[1]).mean((1, 2))
        return rows.mean(0), float(pairs.std(ddof=1))

    def _set(self, names: Sequence[str]) -> Subset:
        return tuple(name for name in self._modalities if name in names)

    @property
    def accuracy_known(self) -> bool:
        """Whether there is an accuracy."""
        return bool(self._hits)


def contribution(worth: Worth, modalities: Subset, modality: str, moved: float, intervals: Intervals) -> Contribution:
    """Everything about one modality."""
    others = [name for name in modalities if name != modality]
    row, deviation = worth.shapley(modality)
    first = worth.gain([], modality)
    whole = sum((worth.gain(modalities[:place], name) for place, name in enumerate(modalities)), np.zeros(1))
    shapley, share = intervals.of(row, deviation), intervals.ratio(row, whole, deviation)
    beside = intervals.of(row / 2 - first, deviation / 2)
    interaction = intervals.ratio(row - first, row, deviation) if shapley.low > 0 else None
    points = intervals.of(*worth.shapley(modality, points=True)) if worth.accuracy_known else None
    return Contribution(
        _verdict(shapley, share, beside),
        shapley,
        share,
        intervals.of(first),
        intervals.of(worth.gain(others, modality)),
        interaction,
        points,
        moved,
    )


def _verdict(shapley: Estimate, share: Estimate | None, beside: Estimate) -> Verdict:
    if shapley.low == shapley.high == 0:
        return "ignored"
    if share is None:
        return "inconclusive"
    if share.high < -IGNORED:
        return "hurts"
    if share.low > BARELY:
        return "relies on interaction" if beside.low > 0 else "used"
    if share.low >= -IGNORED and share.high <= IGNORED:
        return "ignored"
    return "barely used" if share.low >= -BARELY and share.high <= BARELY else "inconclusive"
