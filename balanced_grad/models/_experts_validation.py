"""The validation items of a fit, and what products of the experts' outputs say of them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from balanced_grad.labels import Labels, Task
from balanced_grad.models._product import elementwise_losses, pool

TINY = 1e-12  # of the sum of exponents: a Gaussian of precision 0 has no mean, and an item may have no other expert
_EXCLUDED = 1e3  # times the largest logit: an excluded class, finite so that a weight of 0 can undo it


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
            weights = weights + TINY * weights.sum()
        exponents = weights[:, None] * self.present
        spare = torch.full_like(exponents[:1], self.prior_weight)
        return pool(self.task, torch.cat([self.outputs, self.prior]), torch.cat([exponents, spare]))

    def loss(self, weights: Tensor) -> Tensor:
        """Mean negative log-likelihood under the exponents ``(E,)``."""
        return self.labels.mean(elementwise_losses(self.task, self.product(weights), self.labels))

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
