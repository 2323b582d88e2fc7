"""Intervals of means over the same items: the paired bootstrap, plus what runs or draws add to the spread."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BATCH = 4_000_000  # resampled items in memory at a time


class PairedBootstrap:
    """Draws of the mean of any row over items that are resampled alike for all rows, so that differences are paired.

    Runs of a training, or random orders, add a spread of their own: ``s/√S`` times a draw of Student's t with
    ``S - 1`` degrees of freedom, ``s`` the deviation over ``S`` of them. A bootstrap of three would be too narrow.

    With ``groups``, codes ``(items,)`` from 0 without a gap, whole groups are resampled: the mean is over their items.
    Few of them would be too narrow as well, so each deviation is stretched by ``√(G/χ²)``, chi-square with ``G - 1``
    degrees of freedom, which turns a normal spread over ``G`` groups into Student's t.
    """

    def __init__(
        self, items: int, resamples: int, runs: int = 1, groups: npt.NDArray[np.integer] | None = None
    ) -> None:
        rng = np.random.default_rng(0)  # the same report for the same losses
        self._groups = groups
        self._sizes = np.ones(items) if groups is None else np.bincount(groups).astype(np.float64)
        drawn = len(self._sizes)
        batch = max(1, BATCH // drawn)
        self._counts = [
            _counts(rng.integers(0, drawn, (min(batch, resamples - start), drawn)))
            for start in range(0, resamples, batch)
        ]
        self._student = rng.standard_t(runs - 1, resamples) / np.sqrt(runs) if runs > 1 else np.zeros(resamples)
        self._stretch = np.sqrt(drawn / rng.chisquare(drawn - 1, resamples)) if groups is not None else None

    def means(self, rows: Array, deviation: Array | float = 0.0) -> Array:
        """``(..., resamples)`` means of ``rows (..., items)``, with the spread of the runs: ``deviation (...)``."""
        flat = rows.reshape(-1, rows.shape[-1])
        if self._groups is not None:
            flat = np.stack([np.bincount(self._groups, row) for row in flat])
        turned = (counts.T.astype(np.float64) for counts in self._counts)
        drawn = np.concatenate([flat @ counts / (self._sizes @ counts) for counts in turned], -1)
        if self._stretch is not None:
            centre = flat.sum(-1, keepdims=True) / self._sizes.sum()
            drawn = centre + (drawn - centre) * self._stretch
        spread: Array = np.asarray(deviation)[..., None] * self._student
        return drawn.reshape(*rows.shape[:-1], -1) + spread


def _counts(drawn: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """How often each item was drawn, ``(resamples, items)``; a byte each, since there are many."""
    resamples, items = drawn.shape
    places = (drawn + items * np.arange(resamples)[:, None]).ravel()
    return np.bincount(places, minlength=resamples * items).reshape(resamples, items).clip(max=255).astype(np.uint8)


def bounds(draws: Array, confidence: float) -> tuple[float, float]:
    """The interval of draws ``(resamples,)``: their quantiles."""
    low, high = np.quantile(draws, ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(low), float(high)


def check_interval(confidence: float, tolerance: float, resamples: int) -> None:
    """Refuse numbers that give no interval."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence!r}: give a number between 0 and 1, such as 0.95")
    if not tolerance >= 0:
        raise ValueError(f"tolerance={tolerance!r}: give a number >= 0, in units of the loss")
    if not hasattr(resamples, "__index__") or resamples < 100:
        raise ValueError(f"resamples={resamples!r}: give a whole number, at least 100, or the interval is noise")
