"""How the model holds up where modalities are missing, from the subsets that have been measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from balanced_grad.capture import JOINT
from balanced_grad.diagnosis._contribution import Worth
from balanced_grad.diagnosis._estimates import Estimate, Intervals, plain
from balanced_grad.diagnosis._items import Items
from balanced_grad.diagnosis._network import Network
from balanced_grad.diagnosis._scores import Array, constant, scores
from balanced_grad.labels import Task
from balanced_grad.models import ProductOfHeads
from balanced_grad.subsets import Subset, all_subsets

RATES = tuple(round(0.1 * step, 1) for step in range(11))
FOLDS = 2


@dataclass(frozen=True)
class Robustness:
    """Accuracy against the rate of missing modalities; an absent one is what ``absent=`` says.

    Attributes:
        measure: ``"accuracy"``, in percent, or ``"risk"`` of a regression.
        rates: how often a modality is missing, 0 to 1.
        random: every modality is missing at that rate, independently.
        without: modality -> it alone is missing at that rate.
        heads: as ``random``, by the product of the heads of what is there (``ProductOfHeads``, weights fitted on
            the other half of the items, or ones where it has no errors); None where the model returns no head for
            each modality.
    """

    measure: Literal["accuracy", "risk"]
    rates: tuple[float, ...]
    random: tuple[Estimate, ...]
    without: Mapping[str, tuple[Estimate, ...]]
    heads: tuple[Estimate, ...] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


def robustness(
    worth: Worth,
    modalities: Subset,
    orders: Sequence[Sequence[str]] | None,
    heads: Mapping[Subset, Array] | None,
    intervals: Intervals,
) -> Robustness:
    """From rows over the items of subsets to curves."""

    def row(subset: Sequence[str]) -> Array:
        losses, hits = worth.subset(tuple(name for name in modalities if name in subset))
        return losses if hits is None else hits

    everything = row(modalities)
    by_size = [np.mean([row(each) for each in _of_size(size, modalities, orders)], 0) for size in _sizes(modalities)]
    without = {}
    for name in modalities:
        rest = row([other for other in modalities if other != name])
        without[name] = _curve(np.stack([everything + rate * (rest - everything) for rate in RATES]), intervals)
    product = None
    if heads is not None:
        sizes = [np.mean([heads[each] for each in _of_size(size, modalities, None)], 0) for size in _sizes(modalities)]
        product = _curve(_mixed(sizes), intervals)
    measure: Literal["accuracy", "risk"] = "accuracy" if worth.accuracy_known else "risk"
    return Robustness(measure, RATES, _curve(_mixed(by_size), intervals), without, product)


def _curve(rows: Array, intervals: Intervals) -> tuple[Estimate, ...]:
    return tuple(intervals.many(rows, least=0.0))


def _mixed(by_size: Sequence[Array]) -> Array:
    """``(rates, N)``: sizes of what is there are binomial."""
    most = len(by_size) - 1
    sizes = range(most + 1)
    chances = [[comb(most, size) * (1 - rate) ** size * rate ** (most - size) for size in sizes] for rate in RATES]
    mixed: Array = np.array(chances) @ np.stack(by_size)
    return mixed


def _sizes(modalities: Subset) -> range:
    return range(len(modalities) + 1)


def _of_size(size: int, modalities: Subset, orders: Sequence[Sequence[str]] | None) -> list[Subset]:
    """Subsets of a size: all, or the beginnings of the orders."""
    if orders is not None:
        return [tuple(name for name in modalities if name in order[:size]) for order in orders]
    return [subset for subset in all_subsets(modalities) if len(subset) == size]


def have_heads(net: Network, items: Items, task: Task) -> bool:
    """Whether there are heads to multiply, for labels that are one class per item."""
    single = task == "classification" and items.labels.dim() == 1 and not items.labels.is_floating_point()
    return single and net.returns_heads(items)


def hits_of_heads(net: Network, items: Items) -> dict[Subset, Array] | None:
    """What the product of the model's heads gets right: one more pass."""
    outputs = net.heads(items)
    return None if outputs is None else product_hits(outputs, items.labels, items.modalities)


def product_hits(outputs: Mapping[str, Tensor], labels: Tensor, modalities: Subset) -> dict[Subset, Array]:
    """Subset -> ``(N,)`` percent right of the product of its heads, each half with weights of the other."""
    half = torch.arange(len(labels)) % FOLDS
    hits = {subset: np.zeros(len(labels)) for subset in all_subsets(modalities)}
    for fold in range(FOLDS):
        here, there = half == fold, half != fold
        product = _fitted({name: x[there] for name, x in outputs.items()}, labels[there], modalities)
        for subset, row in hits.items():
            given = {name: x[here] for name, x in outputs.items() if name in subset or subset == modalities}
            nothing = constant("classification", outputs[JOINT][there]).expand(int(here.sum()), -1)
            known = product(given) if given else nothing
            found = scores("classification", known, labels[here]).hits
            assert found is not None
            row[here.numpy()] = 100 * found
    return hits


def _fitted(outputs: Mapping[str, Tensor], labels: Tensor, modalities: Subset) -> ProductOfHeads:
    """With weights that fit these items, or the plain product where a head leaves no error to weigh."""
    product = ProductOfHeads(modalities)
    try:
        product.fit(outputs, labels)
    except RuntimeError:
        return ProductOfHeads(modalities)
    return product
