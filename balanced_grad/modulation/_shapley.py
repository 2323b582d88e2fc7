"""Shapley shares of a prediction, and the gradient that flows back into them."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from balanced_grad.caching import cached


@cached(maxsize=64)
def shapley(count: int, device: torch.device) -> tuple[tuple[tuple[int, ...], ...], Tensor]:
    """Subsets of ``count`` players, all of them first, and the ``(S, M)`` weight of each in each player's value.

    The empty set, whose worth is taken as zero, is left out. The weights of a subset add up to one for all players
    together if it is the full set, else to zero.
    """
    subsets = tuple(subset for size in range(count, 0, -1) for subset in combinations(range(count), size))

    def weight(subset: tuple[int, ...], player: int) -> float:
        before = len(subset) - (player in subset)  # players who came before this one
        share = math.factorial(before) * math.factorial(count - before - 1) / math.factorial(count)
        return share if player in subset else -share

    rows = [[weight(subset, player) for player in range(count)] for subset in subsets]
    # Cached: the copy to a GPU would wait for the host each step.
    return subsets, torch.tensor(rows, dtype=torch.float32, device=device)


def combined(passes: Sequence[Tensor], factors: Tensor) -> Tensor:
    """The first of the predictions, with a gradient that goes to each of them times its own factor."""
    out: Tensor = _Paths.apply(factors, *passes)  # type: ignore[no-untyped-call]
    return out


class _Paths(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, factors: Tensor, *passes: Tensor) -> Tensor:
        ctx.factors = factors
        ctx.dtypes = [found.dtype for found in passes]
        return passes[0].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seeds = ((grads[0] * factor).to(dtype) for factor, dtype in zip(ctx.factors.unbind(), ctx.dtypes, strict=True))
        return None, *seeds
