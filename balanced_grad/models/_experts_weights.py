"""Exponents of a product from validation items: a small convex problem with bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from balanced_grad.labels import Labels, Task
from balanced_grad.models._convex import minimise, minimise_scalar
from balanced_grad.models._product import elementwise_losses, pool

SHRINKAGES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
FOLDS = 5
_EXCLUDED = 1e3  # times the largest logit: an excluded class, finite so that a weight of 0 can undo it
_TIE = 1e-6  # nats: what differs by less is the rounding of the solver
_TINY = 1e-12  # of the sum of exponents: a Gaussian of precision 0 has no mean, and an item may have no other expert
_DOUBT = 1e-9  # share of an unknown label in each one, where the experts make mistakes; it costs no more nats than that


@dataclass(frozen=True)
class Validation:
    """Validation items on the host in float64: ``outputs (E, N, ..., C)``, ``present (E, N)``, ``labels (N, ...)``.

    ``prior`` is ``(1, N, ..., C)`` and counts with the exponent ``prior_weight``. A class whose output is ``floor`` is
    excluded.
    """

    task: Task
    outputs: Tensor
    present: Tensor
    labels: Labels
    prior: Tensor
    prior_weight: float
    floor: float

    def __getitem__(self, rows: Tensor) -> "Validation":
        values, counted, soft = self.labels
        labels = Labels(values[rows], None if counted is None else counted[rows], soft)
        outputs, present, prior = self.outputs[:, rows], self.present[:, rows], self.prior[:, rows]
        return replace(self, outputs=outputs, present=present, labels=labels, prior=prior)

    def __len__(self) -> int:
        return self.present.shape[1]

    def product(self, weights: Tensor) -> Tensor:
        """Prediction under the exponents ``(E,)``."""
        if self.task == "regression":
            weights = weights + _TINY * weights.sum()
        exponents = weights[:, None] * self.present
        spare = torch.full_like(exponents[:1], self.prior_weight)
        return pool(self.task, torch.cat([self.outputs, self.prior]), torch.cat([exponents, spare]))

    def loss(self, weights: Tensor) -> Tensor:
        """Mean negative log-likelihood under the exponents ``(E,)``."""
        return self.labels.mean(elementwise_losses(self.task, self.product(weights), self.labels))

    def doubted(self, weights: Tensor, doubt: float) -> Tensor:
        """The same of labels of which a share ``doubt`` is unknown: any class, either answer, the value of any item."""
        product = self.product(weights)
        known, unknown = elementwise_losses(self.task, product, self.labels), self._unknown(product)
        return self.labels.mean((1 - doubt) * known + doubt * unknown)

    def _unknown(self, product: Tensor) -> Tensor:
        if self.task == "classification":
            allowed = (self.outputs > self.floor).all(0)
            share = allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
            return -(share * product).sum(-1)
        if self.task == "multilabel":
            half = torch.full_like(self.labels.values, 0.5)
            return elementwise_losses(self.task, product, self.labels._replace(values=half))
        values = self.labels.values if self.labels.counted is None else self._missing_as_nan()
        mean = values.nanmean(0)
        spread = (values - mean).square().nanmean(0)
        precision = (-product.chunk(2, -1)[1]).exp()
        around = self.labels._replace(values=mean.expand_as(values))
        return elementwise_losses(self.task, product, around) + 0.5 * spread * precision

    def _missing_as_nan(self) -> Tensor:
        assert self.labels.counted is not None
        return self.labels.values.masked_fill(~self.labels.counted, torch.nan)

    def faultless(self, weights: Tensor) -> bool:
        """Whether the product is right about every label, so that the sharper it is, the better."""
        product, values = self.product(weights), self.labels.values
        if self.task == "classification":
            hard = nn.functional.one_hot(values, product.shape[-1]).bool() if not self.labels.soft else values == 1
            others = product.masked_fill(hard, -torch.inf).amax(-1)
            right = hard.any(-1) & (product.masked_fill(~hard, -torch.inf).amax(-1) > others)
        elif self.task == "multilabel":
            right = ((values == 1) & (product > 0)) | ((values == 0) & (product < 0))
        else:
            error = (product.chunk(2, -1)[0] - values).abs()
            right = error <= 1e-12 * values.abs().amax()
        return bool((right if self.labels.counted is None else right | ~self.labels.counted).all())

    def item_losses(self, weights: Tensor) -> Tensor:
        """Losses ``(N,)`` whose mean is ``loss``."""
        losses = elementwise_losses(self.task, self.product(weights), self.labels)
        counted = torch.ones_like(losses) if self.labels.counted is None else self.labels.counted.to(losses)
        return (losses * counted).reshape(len(self), -1).sum(1) * (len(self) / counted.sum())


def finite(outputs: Tensor) -> tuple[Tensor, float]:
    """Log-probabilities up to a constant per item, the largest being 0, and what stands for an excluded class."""
    outputs = outputs - outputs.amax(-1, keepdim=True).clamp_min(-1e300)
    excluded = outputs == -torch.inf
    floor = -_EXCLUDED * (float(outputs.masked_fill(excluded, 0.0).abs().amax()) or 1.0)
    return outputs.masked_fill(excluded, floor), floor


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
        for shrinkage, per_item in losses.items():
            per_item[held] = items[held].item_losses(fitter.exponents(shrinkage))
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
    scaled = _sharpest(items, lambda doubt: _common(items, weights, doubt) * weights)
    return float(scaled[largest] / weights[largest]) if weights[largest] > 0 else 1.0


class Fitter:
    """Fits of the same items under several shrinkages."""

    def __init__(self, items: Validation, center: int | None = None) -> None:
        self.items = items
        self.center = center
        self._scales: dict[float, tuple[float, float]] = {}
        self._every = torch.eye(len(items.outputs), dtype=torch.double, device="cpu")

    def exponents(self, shrinkage: float) -> Tensor:
        """See ``fit``."""
        return _sharpest(self.items, lambda doubt: self._fit(shrinkage, doubt))

    def _fit(self, shrinkage: float, doubt: float) -> Tensor:
        ones = self._every.sum(0)
        middle = ones if self.center is None else self._every[self.center]
        if doubt not in self._scales:
            self._scales[doubt] = _common(self.items, middle, doubt), self._unit(doubt)
        common, unit = self._scales[doubt]
        if math.isinf(shrinkage) or len(ones) == 1:
            return common * middle
        if unit == 0:  # no expert says anything alone, so together they do not either: the problem is convex
            return 0 * ones

        def objective(weights: Tensor) -> Tensor:
            away = weights - weights.mean() if self.center is None else weights * (1 - middle)
            return self.items.doubted(weights, doubt) + 0.5 * shrinkage * (away / unit).square().sum()

        return minimise(objective, (common or unit / len(ones)) * ones)

    def _unit(self, doubt: float) -> float:
        """What exponents are measured in: that of the expert that alone predicts best, on the items that it has."""
        alone = []
        for expert, present in zip(self._every, self.items.present, strict=True):
            if present.any():
                its = self.items[present.nonzero()[:, 0]]
                exponent = _common(its, expert, doubt)
                alone.append((round(float(its.doubted(exponent * expert, doubt)), 9), -exponent))
        return -min(alone)[1]


def _sharpest(items: Validation, exponents: Callable[[float], Tensor]) -> Tensor:
    """Exponents for the labels as they are or, where no mistake holds them back, for one unknown label in ``N``."""
    of_labels = exponents(_DOUBT)
    return exponents(1 / len(items)) if items.faultless(of_labels) else of_labels


def _common(items: Validation, weights: Tensor, doubt: float) -> float:
    return minimise_scalar(lambda a: items.doubted(a * weights, doubt), 1.0)
