"""What a solve returns."""

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor


class Status(IntEnum):
    """How a problem ended; the codes held by `MinNormResult.status`.

    >>> Status(2).name
    'NON_FINITE'
    """

    SOLVED = 0
    """`weights` is a minimiser to the accuracy that `gap` states."""
    NO_ACTIVE_ROW = 1
    """`active` excludes every row: the weights are all zero."""
    NON_FINITE = 2
    """The Gramian (its active part) holds a NaN or an infinity: the weights are NaN."""
    NOT_CONVERGED = 3
    """The method ran out of iterations: `weights` is feasible, `gap` says how far it is from optimal."""


class MinNormResult(NamedTuple):
    """The min-norm weights of one problem, or of a batch of them, and how good they are.

    >>> import torch
    >>> from balanced_grad.solvers import min_norm
    >>> result = min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
    >>> result.weights, result.solved
    (tensor([0.7500, 0.2500]), tensor(True))
    """

    weights: Tensor
    """`(..., M)`, non-negative, sum 1 over the active rows, exactly 0 elsewhere."""
    gap: Tensor
    """`(...)` fp64: duality gap `max_i (w'Gw - (Gw)_i)` over the largest active diagonal entry of `G`."""
    iterations: Tensor
    """`(...)` int64: linear systems solved one after another; 0 for a closed form."""
    status: Tensor
    """`(...)` int64: `Status` codes."""

    @property
    def solved(self) -> Tensor:
        """`(...)` bool: `status == Status.SOLVED`, on the Gramian's device."""
        return torch.eq(self.status, int(Status.SOLVED))
