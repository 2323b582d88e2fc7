"""Subsets of the modalities: their order and their names."""

from collections.abc import Iterable, Sequence

Subset = tuple[str, ...]  # in the order of the user's modalities


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
