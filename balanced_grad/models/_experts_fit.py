import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_weights import Items, cross_validate, fit, minimise, one_standard_error
from balanced_grad.models._product import silenced
from balanced_grad.models._product_stack import Present, check_targets

_FLOOR = -1e4  # log-probability of a class that an expert excludes: finite, so that its weight can still become 0


@dataclass(frozen=True)
class WeightFit:
    """What ``fit_weights`` or ``fit_temperature`` found.

    Attributes:
        exponents: by expert, ``w_e / τ``.
        shrinkage: ``ρ`` used; infinite where exponents keep their ratios.
        scores: cross-validated negative log-likelihood, in nats, of each ``ρ`` tried; empty where it was given.
        before: mean negative log-likelihood of the items, in nats, with the exponents found there.
        after: the same with the new ones.
    """

    exponents: dict[str, float]
    shrinkage: float
    scores: dict[float, float]
    before: float
    after: float


def fit_weights(
    product: ProductOfExperts,
    outputs: Mapping[str, Tensor],
    targets: Tensor,
    present: Present | None = None,
    *,
    shrinkage: float | None = None,
) -> WeightFit:
    """Fit one non-negative exponent per expert on validation items, and set them in the product (with ``τ = 1``).

        min_{w ≥ 0}  NLL(w) + ρ/2 Σ_e (w_e - w̄)² + (w̄ - 1)² / 2N

    The problem is convex for every task. ``ρ`` shrinks towards equal weights: infinite, it is one temperature for the
    plain product; 0, every expert on its own. The last term counts as much as one of the ``N`` items and keeps the
    weights finite where the experts make no mistake. An expert that is confident and wrong on new items, because it
    has memorised its training items, comes out near zero: do not fit on items that the experts were trained on.

    Our own, in the manner of a logarithmic opinion pool; the paper's product has exponents of 1.

    Args:
        product: whose buffers ``weights`` and ``temperature`` are written.
        outputs: of all experts, as ``product.outputs`` gives them, ``N`` validation items each.
        targets: of these items.
        present: as for ``product.outputs``. Items without an expert are left out.
        shrinkage: ``ρ ≥ 0``, in nats. None (default): of 0, 0.001, 0.01, 0.1, 1 and ``inf`` the largest that is within
            one standard error of the best, by five-fold cross-validation over the items in folds drawn with a fixed
            seed (the rule of Breiman et al., "Classification and Regression Trees", 1984, on paired differences).

    Raises:
        ValueError: for a negative shrinkage, an expert without output, outputs that are not finite.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import ProductOfExperts, fit_weights
        >>> product = ProductOfExperts({"audio": nn.Identity(), "video": nn.Identity()})
        >>> label = torch.arange(60) % 2
        >>> right = torch.where(torch.arange(60) % 10 == 0, 1 - label, label)  # nine times in ten
        >>> memorised = 8 * nn.functional.one_hot(torch.arange(60) // 2 % 2, 2).float()  # sure, and right half the time
        >>> found = fit_weights(product, {"audio": 2.0 * nn.functional.one_hot(right, 2), "video": memorised}, label)
        >>> {name: round(exponent, 1) for name, exponent in found.exponents.items()}
        {'audio': 1.0, 'video': 0.0}
    """
    if shrinkage is not None and not shrinkage >= 0:
        raise ValueError(f"shrinkage={shrinkage!r}: give a number >= 0 (inf: equal weights), or None to choose it")
    items = _items(product, outputs, targets, present)
    held_out = cross_validate(items) if shrinkage is None else {}
    scores = {rho: float(losses.mean()) for rho, losses in held_out.items()}
    chosen = one_standard_error(held_out) if shrinkage is None else shrinkage
    return _set(product, items, fit(items, chosen), 1.0, chosen, scores)


def fit_temperature(
    product: ProductOfExperts, outputs: Mapping[str, Tensor], targets: Tensor, present: Present | None = None
) -> WeightFit:
    """Fit ``τ`` on validation items, and set it in the product, whose weights stay as they are.

        min_{a ≥ 0}  NLL(a w) + (a - 1)² / 2N,   τ = 1 / a

    Arguments, errors and result as for ``fit_weights``.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), on the product's exponents.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import ProductOfExperts, fit_temperature
        >>> product = ProductOfExperts({"audio": nn.Identity(), "copy": nn.Identity()})
        >>> logits = torch.tensor([[0.0, 1.0]]).expand(100, 2)  # 73 %
        >>> label = (torch.arange(100) < 73).long()
        >>> _ = fit_temperature(product, {"audio": logits, "copy": logits}, label)
        >>> product.temperature  # the same evidence, counted twice
        tensor(1.98...)
    """
    items = _items(product, outputs, targets, present)
    weights = product.weights.double().cpu()

    def objective(factor: Tensor) -> Tensor:
        return items.loss(factor * weights) + 0.5 * (factor - 1).square().sum() / len(items)

    factor = minimise(objective, 1).clamp_min(1e-6)
    return _set(product, items, weights, 1.0 / float(factor), math.inf, {})


def _set(
    product: ProductOfExperts,
    items: Items,
    weights: Tensor,
    temperature: float,
    shrinkage: float,
    scores: dict[float, float],
) -> WeightFit:
    exponents = weights / temperature
    before = float(items.loss((product.weights / product.temperature).double().cpu()))
    product.weights.copy_(weights)
    product.temperature.fill_(temperature)
    named = dict(zip(product.subsets, exponents.tolist(), strict=True))
    return WeightFit(named, shrinkage, scores, before, float(items.loss(exponents)))


@torch.no_grad()
def _items(product: ProductOfExperts, outputs: Mapping[str, Tensor], targets: Tensor, present: Present | None) -> Items:
    """Items that have an expert, on the host, with what is absent or excluded made finite."""
    missing = [name for name in product.subsets if outputs.get(name) is None]
    if missing:
        raise ValueError(f"expert {missing[0]!r} has no output: a weight needs the validation items of all experts")
    voices = product.stacked(outputs, present)
    check_targets(product.task, voices.outputs[0], targets)
    rows = voices.present.any(0).nonzero()[:, 0]
    if not len(rows):
        raise ValueError("no validation item has an expert")
    kept = voices.present[:, rows]
    values = silenced(product.task, voices.outputs[:, rows], kept).double()
    if product.task == "classification":
        values = values.clamp_min(_FLOOR)
    for name, own in zip(voices.names, values, strict=True):
        if not own.isfinite().all():
            raise ValueError(f"the output of expert {name!r} is not finite on the validation items")
    prior = product.prior_row(values)
    return Items(product.task, values.cpu(), kept.cpu(), targets[rows].cpu(), prior.cpu(), product.prior_weight)
