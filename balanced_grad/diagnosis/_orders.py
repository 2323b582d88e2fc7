"""Which subsets are measured: all, or beyond some number of modalities those along random orders."""

from collections.abc import Sequence

import numpy as np

from balanced_grad.subsets import Subset, all_subsets

MANY = 6  # 64 subsets; each further modality doubles them
ORDERS = 16  # sampled beyond, as pairs of an order and its reverse


def sampled_orders(modalities: Subset, rng: np.random.Generator) -> list[list[str]] | None:
    """Random orders, each followed by its reverse; None where all subsets are few enough."""
    if len(modalities) <= MANY:
        return None
    orders = [[modalities[place] for place in rng.permutation(len(modalities))] for _ in range(ORDERS // 2)]
    return [each for order in orders for each in (order, order[::-1])]


def to_measure(modalities: Subset, orders: Sequence[Sequence[str]] | None) -> list[Subset]:
    """The subsets to measure, small ones first."""
    if orders is None:
        return all_subsets(modalities)
    wanted = {frozenset(order[:size]) for order in (*orders, modalities) for size in range(len(modalities) + 1)}
    wanted |= {frozenset([name]) for name in modalities} | {frozenset(modalities) - {name} for name in modalities}
    found = [tuple(name for name in modalities if name in subset) for subset in wanted]
    return sorted(found, key=lambda subset: (len(subset), [modalities.index(name) for name in subset]))
