"""Exponents of a product from validation items: a small convex problem with bounds."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from balanced_grad.models._convex import Model, minimise, minimise_scalar
from balanced_grad.models._experts_likelihood import Likelihood, likelihood
from balanced_grad.models._experts_validation import Validation

SHRINKAGES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
FOLDS = 5
_TIE = 1e-6  # nats: what differs by less is the rounding of the solver
_DOUBT = 1e-9  # share of an unknown label in each one, where the experts make mistakes; it costs no more nats than that


def cross_validate(items: Validation, center: int | None = None) -> dict[float, Tensor]:
    """Held-out negative log-likelihood ``(N,)`` of each item for each shrinkage, in folds drawn with a fixed seed."""
    folds = min(FOLDS, len(items))
    if folds < 2:
        raise ValueError("cross-validation needs two items or more; give shrinkage=")
    fold = torch.randperm(len(items), generator=torch.Generator("cpu").manual_seed(0), device="cpu") % folds
    losses = {shrinkage: torch.zeros(len(items), dtype=torch.double, device="cpu") for shrinkage in SHRINKAGES}
    for k in range(folds):
        seen, held = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
        fitter = Fitter(items[seen], center)
        for shrinkage in reversed(SHRINKAGES):  # from much to little, as each fit starts from the last
            losses[shrinkage][held] = items[held].item_losses(fitter.exponents(shrinkage))
    return losses


def lowest(losses: dict[float, Tensor]) -> float:
    """The shrinkage that is best; of those that differ by rounding, the largest."""
    best = min(float(per_item.mean()) for per_item in losses.values())
    return max(shrinkage for shrinkage, per_item in losses.items() if float(per_item.mean()) <= best + _TIE)


def one_standard_error(losses: dict[float, Tensor]) -> float:
    """The largest shrinkage that is not worse than the best by more than one standard error of their difference."""
    best = min(losses.values(), key=lambda per_item: float(per_item.mean()))

    def close(per_item: Tensor) -> bool:
        excess = per_item - best
        return float(excess.mean()) <= float(excess.std()) / math.sqrt(len(excess)) + _TIE

    return max(shrinkage for shrinkage, per_item in losses.items() if close(per_item))


def fit(items: Validation, shrinkage: float, center: int | None = None) -> Tensor:
    """``argmin_{w ≥ 0} NLL(w) + ρ/2 Σ_e ((w_e - c_e) / u)²``: ``(E,)``.

    ``u`` is the exponent of the best expert alone, ``c`` the mean of all exponents, or with ``center`` that expert's
    exponent and zeros.
    """
    return Fitter(items, center).exponents(shrinkage)


def fit_common(items: Validation, weights: Tensor) -> float:
    """``argmin_{a ≥ 0} NLL(a w)``; 1 where nothing depends on it."""
    largest = weights.argmax()
    scaled = _sharpest(items, lambda doubt: _common(likelihood(items, doubt), weights)[0] * weights)
    return float(scaled[largest] / weights[largest]) if weights[largest] > 0 else 1.0


class Fitter:
    """Fits of the same items under several shrinkages."""

    def __init__(self, items: Validation, center: int | None = None) -> None:
        self.items = items
        self.center = center
        self._paths: dict[float, _Path] = {}

    def exponents(self, shrinkage: float) -> Tensor:
        """See ``fit``."""
        return _sharpest(self.items, lambda doubt: self._path(doubt).exponents(shrinkage))

    def _path(self, doubt: float) -> "_Path":
        if doubt not in self._paths:
            self._paths[doubt] = _Path(self.items, self.center, doubt)
        return self._paths[doubt]


class _Path:
    """Fits that differ in shrinkage alone: each starts where the last one has ended."""

    def __init__(self, items: Validation, center: int | None, doubt: float) -> None:
        every = torch.eye(len(items.outputs), dtype=torch.double, device="cpu")
        ones = every.sum(0)
        self.loss = likelihood(items, doubt)
        self.middle = ones if center is None else every[center]
        self.common, _ = _common(self.loss, self.middle)
        self.unit = _unit(items, self.loss, doubt)
        # Twice the penalty is |away w|², in units of an exponent.
        self.away = every - 1 / len(ones) if center is None else every * (1 - self.middle)
        self.point = (self.common or self.unit / len(ones)) * ones

    def exponents(self, shrinkage: float) -> Tensor:
        if math.isinf(shrinkage) or len(self.middle) == 1:
            return self.common * self.middle
        if self.unit == 0:  # no expert says anything alone, so together they do not either: the problem is convex
            return torch.zeros_like(self.middle)
        bend = shrinkage / self.unit**2 * self.away

        def objective(weights: Tensor) -> Model:
            value, slope, curvature = self.loss(weights)
            pull = bend @ weights
            return Model(value + 0.5 * float(weights @ pull), slope + pull, curvature + bend)

        self.point = minimise(objective, self.point)
        return self.point


def _unit(items: Validation, loss: Likelihood, doubt: float) -> float:
    """What exponents are measured in: that of the expert that alone predicts best, on the items that it has."""
    alone = []
    every = torch.eye(len(items.outputs), dtype=torch.double, device="cpu")
    for expert, present in zip(every, items.present, strict=True):
        if present.any():
            its = loss if present.all() else likelihood(items[present.nonzero()[:, 0]], doubt)
            exponent, value = _common(its, expert)
            alone.append((round(value, 9), -exponent))
    return -min(alone)[1]


def _sharpest(items: Validation, exponents: Callable[[float], Tensor]) -> Tensor:
    """Exponents for the labels as they are or, where no mistake holds them back, for one unknown label in ``N``."""
    of_labels = exponents(_DOUBT)
    return exponents(1 / len(items)) if items.faultless(of_labels) else of_labels


def _common(loss: Likelihood, weights: Tensor) -> tuple[float, float]:
    """The best factor of some exponents, and the loss that it leaves."""
    line = loss.along(weights)
    factor = minimise_scalar(lambda a: line(a[None]), 1.0)
    return factor, line(weights.new_tensor([factor])).value
