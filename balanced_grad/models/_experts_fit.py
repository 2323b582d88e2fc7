import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.labels import require_tensor
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_validation import Validation, finite
from balanced_grad.models._experts_weights import cross_validate, fit, fit_common, lowest, one_standard_error
from balanced_grad.models._product import silenced
from balanced_grad.models._product_stack import Present, read_targets

_UNKNOWN = {"classification": "-100", "multilabel": "NaN or -100", "regression": "NaN"}


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
    center: str | None = None,
) -> WeightFit:
    """Fit one non-negative exponent per expert on validation items, and set them in the product (with ``τ = 1``).

        min_{w ≥ 0}  NLL(w) + ρ/2 Σ_e ((w_e - w̄) / u)²

    The problem is convex for every task, and the answer is checked to be its minimum. ``ρ`` shrinks towards equal
    weights: infinite, it is one temperature for the plain product; 0, every expert on its own. With ``center``, an
    expert that has seen all that the others have, it shrinks towards that one alone, ``Σ_{e ≠ center} (w_e / u)²``:
    infinite, it is one temperature for this expert. ``u`` is the exponent of
    the expert that predicts best alone: logits in a unit ten times as large get exponents a tenth as large, and predict
    the same. Where the product makes no mistake, no exponent would be large enough; then each label is taken to be
    unknown with probability ``1/N``, as one item more would make it (after Platt, 1999). An expert that is sure and
    wrong on new items, because it has memorised its training items, comes out near zero: do not fit on items that the
    experts were trained on.

    Our own, in the manner of a logarithmic opinion pool; the paper's product has exponents of 1.

    Args:
        product: whose buffers ``weights`` and ``temperature`` are written.
        outputs: of all experts, as ``product.outputs`` gives them, ``N`` validation items each.
        targets: of these items.
        present: as for ``product.outputs``. Items without an expert are left out.
        shrinkage: ``ρ ≥ 0``, in nats. None (default): of 0, 0.001, 0.01, 0.1, 1 and ``inf`` the largest that is within
            one standard error of the best, by five-fold cross-validation over the items in folds drawn with a fixed
            seed (the rule of Breiman et al., "Classification and Regression Trees", 1984, on paired differences). With
            ``center``, the best: see "What it shrinks to" on the page about experts.
        center: name of the expert towards which to shrink. Default: none, towards equal weights.

    Raises:
        ValueError: for a negative shrinkage, an unknown center, an expert without output, outputs that are not finite,
            targets that are no labels of the task, or none that counts.
        RuntimeError: where no minimum is found.

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
    names = list(product.subsets)
    if center is not None and center not in names:
        raise ValueError(f"center={center!r} is no expert; the experts are {names}")
    middle = None if center is None else names.index(center)
    items = _items(product, outputs, targets, present)
    held_out = cross_validate(items, middle) if shrinkage is None else {}
    scores = {rho: float(losses.mean()) for rho, losses in held_out.items()}
    choose = one_standard_error if middle is None else lowest
    chosen = choose(held_out) if shrinkage is None else shrinkage
    return _set(product, items, fit(items, chosen, middle), 1.0, chosen, scores)


def fit_temperature(
    product: ProductOfExperts, outputs: Mapping[str, Tensor], targets: Tensor, present: Present | None = None
) -> WeightFit:
    """Fit ``τ`` on validation items, and set it in the product, whose weights stay as they are.

        min_{a ≥ 0}  NLL(a w),   τ = 1 / a

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
        tensor(2.01...)
    """
    items = _items(product, outputs, targets, present)
    weights = product.weights.double().cpu()
    factor = fit_common(items, weights) or 1e-6 / float(items.outputs.abs().amax())  # a finite τ that says as little
    return _set(product, items, weights, 1.0 / factor, math.inf, {})


def _set(
    product: ProductOfExperts,
    items: Validation,
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
def _items(
    product: ProductOfExperts, outputs: Mapping[str, Tensor], targets: Tensor, present: Present | None
) -> Validation:
    """Items that have an expert, on the host, with what is absent or excluded made finite."""
    missing = [name for name in product.subsets if outputs.get(name) is None]
    if missing:
        raise ValueError(f"expert {missing[0]!r} has no output: a weight needs the validation items of all experts")
    voices = product.stacked(outputs, present)
    require_tensor(targets)
    said, kept = voices.outputs.double().cpu(), voices.present.cpu()
    labels = read_targets(product.task, said[0], targets.cpu())
    if not kept.any():
        raise ValueError("no validation item has an expert")
    counted = labels.among(kept.any(0)).counted
    assert counted is not None
    rows = counted.flatten(1).any(1) if counted.dim() > 1 else counted
    if not rows.any():
        raise ValueError(f"no validation item with an expert is labelled: all targets are {_UNKNOWN[product.task]}")
    values = silenced(product.task, said, kept)
    values, floor = finite(values) if product.task == "classification" else (values, -math.inf)
    for name, output in zip(voices.names, values[:, rows], strict=True):
        if not output.isfinite().all():
            raise ValueError(f"the output of expert {name!r} is not finite on the validation items")
    every = Validation(product.task, values, kept, labels, product.prior_row(values), product.prior_weight, floor)
    return every[rows.nonzero()[:, 0]]
