"""Differences of risks with an interval: paired bootstrap over the test items, plus the spread over the seeds."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from balanced_grad.diagnostics._items import Array
from balanced_grad.intervals import PairedBootstrap, bounds, check_interval

Verdict = Literal["helps", "hurts", "inconclusive"]
"""What the interval of a gap says: see `Gap.verdict`."""


@dataclass(frozen=True)
class Gap:
    """A difference of risks, ``γ = R(𝓜) - R(𝓝)``: below zero, 𝓜 has the better latent.

    Attributes:
        value: mean over the seeds, in units of the loss.
        low, high: its interval.
        verdict: ``"helps"`` if ``high < -tolerance``, ``"hurts"`` if ``low > tolerance``, else ``"inconclusive"``.
        seeds: the difference of each seed.
        points: accuracy of 𝓜 minus that of 𝓝 in percentage points, for display; None for a regression.
        training_gain: ``L(𝓝) - L(𝓜)``, the training loss that 𝓜 saves; None where a model has no head of its own.
        complexity_price: ``√(d(𝓜)/m) - √(d(𝓝)/m)``, ``d`` parameters and ``m`` training items. With the constant
            of the theory's bound it would be the price of 𝓜; nobody knows that constant, so compare between
            data sets or sizes only.
    """

    value: float
    low: float
    high: float
    verdict: Verdict
    seeds: tuple[float, ...]
    points: float | None = None
    training_gain: float | None = None
    complexity_price: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {**self.__dict__, "seeds": list(self.seeds)}


def gap_of(losses: Array, contrast: Array, resampled: PairedBootstrap, confidence: float, tolerance: float) -> Gap:
    """The contrast ``(K,)`` of ``K`` risks, from ``losses (S, K, N)`` of ``S`` seeds on the same ``N`` items."""
    seeds = losses.mean(2) @ contrast
    deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0
    low, high = bounds(resampled.means(contrast @ losses.mean(0), deviation), confidence)
    verdict: Verdict = "helps" if high < -tolerance else "hurts" if low > tolerance else "inconclusive"
    return Gap(float(seeds.mean()), low, high, verdict, tuple(seeds.tolist()))


def paired_gap(
    first: Array,
    second: Array,
    *,
    groups: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    resamples: int = 4000,
) -> Gap:
    """Difference of two mean losses on the same test items, to see whether the first latent, or method, is better.

        γ = mean(first) - mean(second)

    For instance of the same subset under two ways of training: ``paired_gap(a[subset].losses, b[subset].losses)``.

    Args:
        first: per-item losses ``(N,)``, or ``(S, N)`` with one row per seed, the seeds being paired too.
        second: the same of the other.
        groups: which items belong together, such as the recordings of one person: a label per item ``(N,)``, of any
            type. Whole groups are resampled (the cluster bootstrap, Field and Welsh 2007), since items of one person
            err alike, and few groups widen the interval as Student's t does (ours). Default: every item is on its own.
        confidence: of the interval, in (0, 1); default 0.95.
        tolerance: a gap that is smaller than this, in units of the loss, is neither help nor harm; default 0.
        resamples: bootstrap resamples; default 4000 (ours).

    Raises:
        ValueError: for shapes that differ, fewer than two items or groups, or numbers out of range.

    Examples:
        >>> import numpy as np
        >>> from balanced_grad.diagnostics import paired_gap
        >>> hard = np.random.default_rng(0).exponential(size=500)  # the items differ far more than the methods
        >>> gap = paired_gap(hard - 0.01, hard)
        >>> round(gap.value, 4), gap.verdict
        (-0.01, 'helps')

        Ten people with fifty items each, of whom one alone gains:

        >>> person = np.repeat(np.arange(10), 50)
        >>> better = hard - 0.1 * (person == 0)
        >>> paired_gap(better, hard).verdict, paired_gap(better, hard, groups=person).verdict
        ('helps', 'inconclusive')
    """
    check_interval(confidence, tolerance, resamples)
    first, second = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise ValueError(f"losses are (N,) or (S, N), alike, N >= 2; got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("losses must be finite")
    codes = None if groups is None else _codes(groups, first.shape[1])
    resampled = PairedBootstrap(first.shape[1], resamples, len(first), codes)
    return gap_of(np.stack([first, second], 1), np.array([1.0, -1.0]), resampled, confidence, tolerance)


def _codes(groups: npt.ArrayLike, items: int) -> npt.NDArray[np.intp]:
    """Labels as numbers from 0."""
    labels = np.asarray(groups)
    if labels.shape != (items,):
        raise ValueError(f"groups is one label per item, ({items},); got {labels.shape}")
    codes = np.unique(labels, return_inverse=True)[1]
    if codes.max() < 1:
        raise ValueError(f"all {items} items are of one group, {labels[0]!r}: an interval needs two groups or more")
    return codes
