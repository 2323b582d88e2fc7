from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from balanced_grad.kernels._dispatch import Implementation
from balanced_grad.kernels._gramian import products
from balanced_grad.kernels._layout import check_rows
from balanced_grad.kernels._segments import check_bounds


class Conflict(NamedTuple):
    """How far gradients pull apart: Gramians of the rows and of their signs, per segment where asked for.

    Attributes:
        gramian: ``(M, M)`` or ``(S, M, M)`` float64, as from ``gramian``.
        signs: of the same shape: in how many dimensions two rows have the same sign, less those of opposite sign.
    """

    gramian: Tensor
    signs: Tensor

    @property
    def cosine(self) -> Tensor:
        """Cosine of each pair of rows; 0 for a row of zeros."""
        return _cosine(self.gramian)

    @property
    def agreement(self) -> Tensor:
        """Cosine of the signs: 1 where all agree, -1 where all oppose, whatever the sizes; 0 for a row of zeros."""
        return _cosine(self.signs)


def conflict(
    rows: Tensor, segments: Sequence[int] | None = None, *, implementation: Implementation = "auto"
) -> Conflict:
    """Gramian and sign agreement of the rows, in one read.

        cos_ij = G_ij / √(G_ii G_jj),   the same with sign(r) for the agreement

    Few large entries decide the cosine; the agreement counts every dimension once.

    Args:
        rows: ``(M, D)``, real floating point.
        segments: where each of ``S`` segments of columns starts, and the end: rising from 0 to D. Default: one.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``Conflict(gramian, signs)`` with ``cosine`` and ``agreement``.

    Raises:
        TypeError, ValueError, RuntimeError: as ``gramian``.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import conflict
        >>> found = conflict(torch.tensor([[3.0, 0.1, 0.1, 0.1], [4.0, -0.1, -0.1, -0.1]]))
        >>> found.cosine[0, 1] > 0.9, found.agreement[0, 1]
        (tensor(True), tensor(-0.5000, dtype=torch.float64))
    """
    check_rows(rows)
    bounds = None if segments is None else check_bounds(segments, rows.shape[1])
    found = products(rows, bounds, True, implementation)
    return Conflict(found[0], found[1])


def _cosine(gramian: Tensor) -> Tensor:
    norm = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    product = norm.unsqueeze(-1) * norm.unsqueeze(-2)
    return torch.where(product == 0, torch.zeros_like(gramian), gramian / product)
