"""Shapley shares of a prediction."""

import torch
from torch import Tensor

from balanced_grad.caching import cached
from balanced_grad.subsets import all_subsets, shapley_contrast


@cached(maxsize=64)
def shapley(count: int, device: torch.device) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Subsets of ``count`` players, all of them first, and the ``(S, M)`` weight of each in each player's value.

    The empty set, whose worth is taken as zero, is left out. The weights of a subset add up to one for all players
    together if it is the full set, else to zero.
    """
    subsets = tuple(subset for subset in sorted(all_subsets(range(count)), key=len, reverse=True) if subset)
    contrasts = [shapley_contrast(range(count), player) for player in range(count)]
    rows = [[contrast[subset] for contrast in contrasts] for subset in subsets]
    # Cached: the copy to a GPU would wait for the host each step.
    return subsets, torch.tensor(rows, dtype=torch.float32, device=device)
