"""Differences of risks with an interval: paired bootstrap over the test items, plus the spread over the seeds."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from balanced_grad.diagnostics._items import Array

Verdict = Literal["helps", "hurts", "inconclusive"]
"""What the interval of a gap says: see `Gap.verdict`."""
BATCH = 4_000_000  # resampled losses in memory at a time


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


class PairedBootstrap:
    """Distribution of every contrast of ``K`` risks, from ``losses (S, K, N)`` of ``S`` seeds on the same ``N`` items.

    The items are resampled once for all risks, so that any difference is a paired one. With two seeds or more,
    ``s/√S`` times a draw of Student's t with ``S - 1`` degrees of freedom is added, ``s`` the deviation of the
    contrast over the seeds: a bootstrap of three seeds would be too narrow.
    """

    def __init__(self, losses: Array, resamples: int) -> None:
        from scipy.stats import bootstrap

        self.by_seed = losses.mean(2)
        rng = np.random.default_rng(0)  # the same report for the same losses
        risks, items = losses.shape[1:]
        self._draws: Array = bootstrap(
            (losses.mean(0),),
            np.mean,
            axis=-1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, BATCH // (risks * items)),
            method="percentile",
            random_state=rng,
        ).bootstrap_distribution
        seeds = len(losses)
        self._student = rng.standard_t(seeds - 1, resamples) / np.sqrt(seeds) if seeds > 1 else np.zeros(resamples)

    def gap(self, contrast: Array, confidence: float, tolerance: float) -> Gap:
        """The contrast ``(K,)`` of the risks."""
        seeds = self.by_seed @ contrast
        deviation = float(seeds.std(ddof=1)) if len(seeds) > 1 else 0.0
        draws = contrast @ self._draws + deviation * self._student
        low, high = (float(q) for q in np.quantile(draws, ((1 - confidence) / 2, (1 + confidence) / 2)))
        verdict: Verdict = "helps" if high < -tolerance else "hurts" if low > tolerance else "inconclusive"
        return Gap(float(seeds.mean()), low, high, verdict, tuple(seeds.tolist()))


def paired_gap(
    first: Array, second: Array, *, confidence: float = 0.95, tolerance: float = 0.0, resamples: int = 4000
) -> Gap:
    """Difference of two mean losses on the same test items, to see whether the first latent, or method, is better.

        γ = mean(first) - mean(second)

    For instance of the same subset under two ways of training: ``paired_gap(a[subset].losses, b[subset].losses)``.

    Args:
        first: per-item losses ``(N,)``, or ``(S, N)`` with one row per seed, the seeds being paired too.
        second: the same of the other.
        confidence: of the interval, in (0, 1); default 0.95.
        tolerance: a gap that is smaller than this, in units of the loss, is neither help nor harm; default 0.
        resamples: bootstrap resamples; default 4000 (ours).

    Raises:
        ValueError: for shapes that differ, fewer than two items, or numbers out of range.

    Examples:
        >>> import numpy as np
        >>> from balanced_grad.diagnostics import paired_gap
        >>> hard = np.random.default_rng(0).exponential(size=500)  # the items differ far more than the methods
        >>> gap = paired_gap(hard - 0.01, hard)
        >>> round(gap.value, 4), gap.verdict
        (-0.01, 'helps')
    """
    check_interval(confidence, tolerance, resamples)
    first, second = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    if first.shape != second.shape or first.ndim != 2 or first.shape[1] < 2:
        raise ValueError(f"losses are (N,) or (S, N), alike, N >= 2; got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("losses must be finite")
    bootstrap = PairedBootstrap(np.stack([first, second], 1), resamples)
    return bootstrap.gap(np.array([1.0, -1.0]), confidence, tolerance)


def check_interval(confidence: float, tolerance: float, resamples: int) -> None:
    """Refuse numbers that give no interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: give a number between 0 and 1, such as 0.95")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance!r}: give a number >= 0, in units of the loss")
    if not hasattr(resamples, "__index__") or resamples < 100:
        raise ValueError(f"resamples={resamples!r}: give a whole number, at least 100, or the interval is noise")
