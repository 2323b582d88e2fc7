"""Subsets of the modalities, their order, their names, and how much each weighs in a Shapley value."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import factorial

Subset = tuple[str, ...]  # in the order of the user's modalities


def all_subsets(modalities: Sequence[str]) -> list[Subset]:
    """Every subset, small ones first, beginning with the empty one."""
    return [subset for size in range(len(modalities) + 1) for subset in combinations(modalities, size)]


def label(subset: Subset) -> str:
    """The subset in one word."""
    return "+".join(subset) or "none"


def in_order(modalities: Sequence[str], names: Iterable[str]) -> Subset:
    """The named modalities as a subset; a single string names one modality."""
    wanted = {names} if isinstance(names, str) else set(names)
    unknown = sorted(map(repr, wanted - set(modalities)))
    if unknown:
        raise ValueError(f"no such modality: {', '.join(unknown)}; there are {', '.join(map(repr, modalities))}")
    return tuple(name for name in modalities if name in wanted)


def shapley_contrast(modalities: Sequence[str], modality: str) -> dict[Subset, float]:
    """Coefficients of the subsets' risks in one modality's Shapley value, a weighted mean of its ``2^(M-1)`` gaps."""
    total = len(modalities)
    contrast = {}
    for subset in all_subsets([name for name in modalities if name != modality]):
        weight = factorial(len(subset)) * factorial(total - len(subset) - 1) / factorial(total)
        contrast[subset] = -weight
        contrast[in_order(modalities, (*subset, modality))] = weight
    return contrast
