"""Exponents of a product from validation items: a small convex problem with bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from balanced_grad.methods import Task
from balanced_grad.models._product import elementwise_losses, mean_loss, pool

SHRINKAGES = (0.0, 1e-3, 1e-2, 1e-1, 1.0, math.inf)
FOLDS = 5
_TIE = 1e-6  # nats: what differs by less is the rounding of the solver
_TINY = 1e-12  # a Gaussian of precision 0 has no mean, and an item may have no other expert
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """Validation items on the host in float64: ``outputs (E, N, ..., C)``, ``present (E, N)``, ``targets (N, ...)``.

    ``prior`` is ``(1, N, ..., C)`` and counts with the exponent ``prior_weight``.
    """

    task: Task
    outputs: Tensor
    present: Tensor
    targets: Tensor
    prior: Tensor
    prior_weight: float

    def __getitem__(self, rows: Tensor) -> "Items":
        picked = (self.outputs[:, rows], self.present[:, rows], self.targets[rows], self.prior[:, rows])
        return Items(self.task, *picked, self.prior_weight)

    def __len__(self) -> int:
        return self.present.shape[1]

    def product(self, weights: Tensor) -> Tensor:
        """Prediction under the exponents ``(E,)``."""
        exponents = (weights[:, None] + _TINY) * self.present
        spare = torch.full_like(exponents[:1], self.prior_weight)
        return pool(self.task, torch.cat([self.outputs, self.prior]), torch.cat([exponents, spare]))

    def loss(self, weights: Tensor) -> Tensor:
        """Mean negative log-likelihood under the exponents ``(E,)``."""
        return mean_loss(self.task, self.product(weights), self.targets)

    def item_losses(self, weights: Tensor) -> Tensor:
        """Mean of each item ``(N,)``; of a class -100 it is 0."""
        losses = elementwise_losses(self.task, self.product(weights), self.targets)
        return losses.reshape(len(self), -1).mean(1)


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
    """``argmin_{w ≥ 0} NLL(w) + ρ/2 Σ_e (w_e - w̄)² + (w̄ - 1)²/2N``: exponents ``(E,)``."""
    experts = len(items.outputs)

    def objective(free: Tensor) -> Tensor:
        weights = free.expand(experts)
        mean = weights.mean()
        spread = 0.0 if len(free) == 1 else 0.5 * shrinkage * (weights - mean).square().sum()
        return items.loss(weights) + spread + 0.5 * (mean - 1).square() / len(items)

    return minimise(objective, 1 if math.isinf(shrinkage) else experts).expand(experts)


def minimise(objective: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Minimiser ``(size,)`` over the non-negative numbers of a convex function of a float64 vector, started at ones."""
    from scipy.optimize import minimize

    def value_and_slope(x: Array) -> tuple[float, Array]:
        point = torch.from_numpy(x).requires_grad_()
        value = objective(point)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.numpy()

    with torch.enable_grad():
        found = minimize(
            value_and_slope,
            np.ones(size),
            jac=True,
            method="SLSQP",  # as precise as L-BFGS-B, whose threaded algebra costs small problems dear
            bounds=[(0, None)] * size,
            options={"ftol": 1e-12, "maxiter": 200},
        )
    return torch.from_numpy(found.x).clamp_min(0)
