"""Sets of players: their order, their names, and how much the worth of each counts in one player's Shapley value."""

from collections.abc import Iterable, Sequence
from itertools import combinations
from math import factorial
from typing import TypeVar

Player = TypeVar("Player", bound=int | str)
Subset = tuple[str, ...]  # of modalities, in the order of the user's


def all_subsets(players: Sequence[Player]) -> list[tuple[Player, ...]]:
    """Every subset in the players' order, small ones first, beginning with the empty one."""
    return [subset for size in range(len(players) + 1) for subset in combinations(players, size)]


def shapley_contrast(players: Sequence[Player], player: Player) -> dict[tuple[Player, ...], float]:
    """Coefficients of the subsets' worths in one player's Shapley value, a weighted mean of ``2^(M-1)`` gains.

    s! (M - s - 1)! / M!   for each set of s others: minus for the set, plus for the set with the player
    """
    count = len(players)
    contrast = {}
    for others in all_subsets([other for other in players if other != player]):
        share = factorial(len(others)) * factorial(count - len(others) - 1) / factorial(count)
        contrast[others] = -share
        contrast[tuple(each for each in players if each in others or each == player)] = share
    return contrast


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
