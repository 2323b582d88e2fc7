"""`min_norm`: checks what the user wrote and picks the method."""

import math

import numpy as np
import torch
from torch import Tensor

from balanced_grad.solvers import _active_set
from balanced_grad.solvers._closed import three_rows, two_rows
from balanced_grad.solvers._result import MinNormResult, Status


def min_norm(gramian: Tensor, *, method: str = "auto", active: Tensor | None = None) -> MinNormResult:
    """Minimise `w'Gw` over the simplex."""
    dtype = gramian.dtype if gramian.dtype in (torch.float32, torch.float64) else torch.float32
    M = gramian.shape[-1]
    tol = max(2.0 * torch.finfo(dtype).eps, 4.0 * max(M, 4) * 2.0**-52)
    problems = gramian.detach().to("cpu", torch.float64).reshape(-1, M, M).tolist()
    masks = [None] * len(problems)
    if active is not None:
        masks = active.expand(gramian.shape[:-1]).reshape(-1, M).tolist()
    out = [_solve(G, m, tol) for G, m in zip(problems, masks, strict=True)]
    batch = gramian.shape[:-2]

    def column(k: int, kind: torch.dtype, shape: torch.Size) -> Tensor:
        return torch.tensor([o[k] for o in out], dtype=kind, device=gramian.device).reshape(shape)

    return MinNormResult(
        column(0, dtype, gramian.shape[:-1]),
        column(1, torch.float64, batch),
        column(2, torch.int64, batch),
        column(3, torch.int64, batch),
    )


def _solve(G: list[list[float]], mask: list[bool] | None, tol: float) -> tuple[list[float], float, int, int]:
    index = [i for i in range(len(G)) if mask is None or mask[i]]
    w = [0.0] * len(G)
    if not index:
        return w, 0.0, 0, Status.NO_ACTIVE_ROW
    H = [[G[i][j] for j in index] for i in index]
    if not all(math.isfinite(x) for row in H for x in row):
        return [math.nan] * len(G), math.nan, 0, Status.NON_FINITE
    iterations, status = 0, Status.SOLVED
    v: list[float] | tuple[float, ...] | None = None
    if len(H) == 1:
        v = [1.0]
    elif len(H) == 2:
        v = two_rows(H, tol)
    elif len(H) == 3:
        v = three_rows(H, tol)
    if v is None:
        x, iterations, converged = _active_set.solve(np.array(H), tol)
        v = x.tolist()
        status = Status.SOLVED if converged else Status.NOT_CONVERGED
    for i, x_i in zip(index, v, strict=True):
        w[i] = x_i
    return w, _active_set.duality_gap(np.array(H), np.array(v)), iterations, status
