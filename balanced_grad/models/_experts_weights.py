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
EXCLUDED = -1e4  # log-probability of a class that an expert excludes: finite, so that its weight can still become 0
_TIE = 1e-6  # nats: what differs by less is the rounding of the solver
_TINY = 1e-12  # of the sum of exponents: a Gaussian of precision 0 has no mean, and an item may have no other expert
_DOUBT = 1e-9  # share of an unknown label in each one, where the experts make mistakes; it costs no more nats than that
_EVEN = 1e-9  # shrinkage that shares out a weight among copies


@dataclass(frozen=True)
class Items:
    """Validation items on the host in float64: ``outputs (E, N, ..., C)``, ``present (E, N)``, ``labels (N, ...)``.

    ``prior`` is ``(1, N, ..., C)`` and counts with the exponent ``prior_weight``.
    """

    task: Task
    outputs: Tensor
    present: Tensor
    labels: Labels
    prior: Tensor
    prior_weight: float

    def __getitem__(self, rows: Tensor) -> "Items":
        values, counted, soft = self.labels
        labels = Labels(values[rows], None if counted is None else counted[rows], soft)
        picked = {"outputs": self.outputs[:, rows], "present": self.present[:, rows], "prior": self.prior[:, rows]}
        return replace(self, labels=labels, **picked)

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
            allowed = (self.outputs > EXCLUDED).all(0)
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


def cross_validate(items: Items) -> dict[float, Tensor]:
    """Held-out negative log-likelihood ``(N,)`` of each item for each shrinkage, in folds drawn with a fixed seed."""
    folds = min(FOLDS, len(items))
    if folds < 2:
        raise ValueError("cross-validation needs two items or more; give shrinkage=")
    fold = torch.randperm(len(items), generator=torch.Generator("cpu").manual_seed(0), device="cpu") % folds
    losses = {shrinkage: torch.zeros(len(items), dtype=torch.double, device="cpu") for shrinkage in SHRINKAGES}
    for k in range(folds):
        seen, held = (fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]
        for shrinkage, own in losses.items():
            own[held] = items[held].item_losses(fit(items[seen], shrinkage))
    return losses


def one_standard_error(losses: dict[float, Tensor]) -> float:
    """The largest shrinkage that is not worse than the best by more than one standard error of their difference."""
    best = min(losses.values(), key=lambda own: float(own.mean()))

    def close(own: Tensor) -> bool:
        excess = own - best
        return float(excess.mean()) <= float(excess.std()) / math.sqrt(len(excess)) + _TIE

    return max(shrinkage for shrinkage, own in losses.items() if close(own))


def fit(items: Items, shrinkage: float) -> Tensor:
    """``argmin_{w ≥ 0} NLL(w) + ρ/2 Σ_e ((w_e - w̄) / u)²``, where ``u`` is the unit that ``_unit`` finds: ``(E,)``."""
    return sharpest(items, lambda doubt: _fit(items, shrinkage, doubt))


def fit_common(items: Items, weights: Tensor) -> float:
    """``argmin_{a ≥ 0} NLL(a w)``; 1 where nothing depends on it."""
    found = sharpest(items, lambda doubt: _common(items, weights, doubt) * weights)
    largest = weights.argmax()
    return float(found[largest] / weights[largest]) if weights[largest] > 0 else 1.0


def sharpest(items: Items, exponents: Callable[[float], Tensor]) -> Tensor:
    """Exponents for the labels as they are or, where no mistake holds them back, for one unknown label in ``N``."""
    found = exponents(_DOUBT)
    return exponents(1 / len(items)) if items.faultless(found) else found


def _common(items: Items, weights: Tensor, doubt: float) -> float:
    return minimise_scalar(lambda a: items.doubted(a * weights, doubt), 1.0)


def _fit(items: Items, shrinkage: float, doubt: float) -> Tensor:
    every = torch.ones(len(items.outputs), dtype=torch.double, device="cpu")
    common = _common(items, every, doubt)
    if math.isinf(shrinkage) or len(every) == 1:
        return common * every
    unit = _unit(items, doubt)
    if unit == 0:  # no expert says anything alone, so together they do not either: the problem is convex
        return 0 * every

    def objective(weights: Tensor) -> Tensor:
        spread = ((weights - weights.mean()) / unit).square().sum()
        return items.doubted(weights, doubt) + 0.5 * max(shrinkage, _EVEN) * spread

    return minimise(objective, (common or unit / len(every)) * every)


def _unit(items: Items, doubt: float) -> float:
    """What exponents are measured in: the one of the expert that alone predicts best, on the items that it has."""
    alone = []
    for expert, present in zip(torch.eye(len(items.outputs), dtype=torch.double, device="cpu"), items.present, strict=True):
        if present.any():
            its = items[present.nonzero()[:, 0]]
            exponent = _common(its, expert, doubt)
            alone.append((round(float(its.doubted(exponent * expert, doubt)), 9), -exponent))
    return -min(alone)[1]
