"""What a solve returns."""

from collections.abc import Iterator
from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How a problem ended; the codes held by `MinNormResult.status`.

    Examples:
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
    """No method passed the optimality conditions, or the matrix is no Gramian: `weights` is feasible, see `gap`."""


class MinNormResult:
    """The min-norm weights of one problem, or of a batch of them, and how good they are.

    Unpacks as ``weights, gap, iterations, status``. Of a single problem solved on the host the last three are numbers
    until they are asked for: a tensor costs as much as the solve.

    Attributes:
        weights: ``(..., M)``, non-negative, sum 1 over the active rows, exactly 0 elsewhere.

    Examples:
        >>> import torch
        >>> from balanced_grad.solvers import min_norm
        >>> result = min_norm(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        >>> result.weights, result.solved
        (tensor([0.7500, 0.2500]), tensor(True))
    """

    __slots__ = ("_gap", "_iterations", "_status", "weights")

    def __init__(self, weights: Tensor, gap: Tensor | float, iterations: Tensor | int, status: Tensor | int) -> None:
        self.weights = weights
        self._gap = gap
        self._iterations = iterations
        self._status = status

    @property
    def gap(self) -> Tensor:
        """``(...)`` float64: duality gap ``max_i (w'Gw - (Gw)_i)`` over the largest active diagonal entry of ``G``."""
        return _tensor(self._gap, torch.float64)

    @property
    def iterations(self) -> Tensor:
        """``(...)`` int64: linear systems solved one after another; 0 for a closed form."""
        return _tensor(self._iterations, torch.int64)

    @property
    def status(self) -> Tensor:
        """``(...)`` int64: ``Status`` codes."""
        return _tensor(self._status, torch.int64)

    @property
    def solved(self) -> Tensor:
        """``(...)`` bool: ``status == Status.SOLVED``, on the Gramian's device."""
        return torch.eq(self.status, int(Status.SOLVED))

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.weights, self.gap, self.iterations, self.status))

    def __repr__(self) -> str:
        weights, gap, iterations, status = self
        return f"MinNormResult(weights={weights}, gap={gap}, iterations={iterations}, status={status})"


def _tensor(value: Tensor | float, dtype: torch.dtype) -> Tensor:
    """Numbers were solved for on the host, whatever the default device."""
    return value.to(dtype) if isinstance(value, Tensor) else torch.tensor(value, dtype=dtype, device="cpu")
