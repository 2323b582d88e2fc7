"""Exact enumeration of the simplex's faces for small M: batched, branch-free, no host synchronisation (torch, fp64).

Each face's free minimiser comes from a Gauss-Jordan elimination with diagonal pivoting. A pivot at the noise level
is left out, which makes its column a null direction; the point is then moved along the null directions to the
smallest `|w|`. The min-norm point of smallest `|w|` lies inside some face and is that face's point, so among the
points that pass the optimality conditions the one of smallest `|w|` is the answer.

Sums over rows are written as loops: their order must not depend on the batch.
"""

import torch
from torch import Tensor

MAX_ROWS = 8
_CHUNK = 1 << 22  # entries of the (problems, faces, M, M + 1) tableau held at once


def solve_faces(G: Tensor, active: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Min-norm weights `(B, M)` of finite `(B, M, M)` Gramians over `active` rows, and whether they passed."""
    M = G.shape[-1]
    size = max(1, _CHUNK // (2**M * M * (M + 1)))
    chunks = range(0, max(len(G), 1), size)
    parts = [_solve_chunk(G[k : k + size], active[k : k + size], tol) for k in chunks]
    return torch.cat([w for w, _ in parts]), torch.cat([passed for _, passed in parts])


def _solve_chunk(G: Tensor, active: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    M = G.shape[-1]
    diagonal = G.diagonal(dim1=-2, dim2=-1)
    zero = active & (diagonal <= 0.0)
    used = active & ~zero
    scale = torch.where(used, torch.pow(2.0, -(torch.frexp(diagonal)[1] // 2).double()), 0.0)
    a = scale / scale.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    K = G * scale[:, :, None] * scale[:, None, :] + a[:, :, None] * a[:, None, :]
    bits = torch.arange(1, 2**M, device=G.device)[:, None] >> torch.arange(M, device=G.device)
    face = ((bits & 1) == 1) & used[:, None, :]  # (B, F, M)
    w = _face_points(K[:, None], a[:, None], face, tol)
    key, passed = _violation(K[:, None], a[:, None], used[:, None], w, tol)
    length = torch.where(key <= torch.clamp_min(2.0 * key.amin(-1, keepdim=True), 8.0 * tol), _dot(w, w), torch.inf)
    best = length.argmin(-1)[:, None, None].expand(-1, 1, M)
    w = w.gather(1, best)[:, 0]
    w = torch.where(zero.any(-1, keepdim=True), zero.to(w.dtype), w)
    return w / _total(w).clamp_min(torch.finfo(torch.float64).tiny)[:, None], passed | zero.any(-1)


def _face_points(K: Tensor, a: Tensor, face: Tensor, tol: float) -> Tensor:
    """`(B, F, M)` weights: each face's free minimiser of smallest `|w|`, not checked for sign."""
    pair = face[..., :, None] & face[..., None, :]
    table = torch.cat((torch.where(pair, K, 0.0), torch.where(face, a, 0.0)[..., None]), -1)
    table, pivoted = _eliminate(table, tol)
    w = a * torch.where(pivoted, table[..., -1], 0.0)
    w = w / _total(w).clamp_min(torch.finfo(torch.float64).tiny)[..., None]
    free = face & ~pivoted
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    null = torch.where(pivoted[..., :, None], -table[..., :-1], eye)
    null = torch.where(free[..., None, :], a[..., :, None] * null, 0.0)
    null = null / torch.where(free, _dot(null.mT, null.mT).sqrt(), 1.0)[..., None, :]
    normal = torch.stack([_dot(null.mT, null[..., :, j, None].mT) for j in range(K.shape[-1])], -1)
    table, _ = _eliminate(torch.cat((normal, _dot(null.mT, w[..., None, :])[..., None]), -1), tol)
    return w - _dot(null, torch.where(free, table[..., -1], 0.0)[..., None, :])


def _eliminate(table: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """Gauss-Jordan on the diagonal, largest pivot first, of `(..., M, M + 1)`; which rows were pivoted."""
    M = table.shape[-2]
    row_ids = torch.arange(M, device=table.device)
    pivoted = torch.zeros(table.shape[:-1], dtype=torch.bool, device=table.device)
    for _ in range(M):
        rest = torch.where(pivoted, 0.0, table.diagonal(dim1=-2, dim2=-1))
        pivot, k = rest.max(-1, keepdim=True)
        here = (row_ids == k) & (pivot > tol)
        row = table.gather(-2, k[..., None].expand(*k.shape[:-1], 1, M + 1))
        row = row / torch.where(pivot > tol, pivot, 1.0)[..., None]
        column = table[..., :-1].gather(-1, k[..., None, :].expand(*k.shape[:-1], M, 1))
        swept = torch.where(here[..., None], row, table - column * row)
        table = torch.where((pivot > tol)[..., None], swept, table)
        pivoted = pivoted | here
    return table, pivoted


def _violation(K: Tensor, a: Tensor, used: Tensor, w: Tensor, tol: float) -> tuple[Tensor, Tensor]:
    """How far each point is from optimal, relative to rounding's reach (inf: negative), and if any passes."""
    positive = (w >= -tol).all(-1) & (_total(w) > 0.5)
    w.clamp_min_(0.0).div_(_total(w).clamp_min(torch.finfo(w.dtype).tiny)[..., None])
    u = torch.where(used, w / torch.where(used, a, 1.0), 0.0)
    product, reach = _dot(K, u[..., None, :]), _dot(K.abs(), u[..., None, :])
    # u'Ku = f + 1 as a'u = 1; at the optimum (Ku)_i >= a_i (f + 1)
    level = _dot(u, product)[..., None]
    slack = (product - a * level) / torch.where(used, reach + a * level, 1.0)
    key = torch.where(positive, torch.where(used, -slack, 0.0).amax(-1).clamp_min(0.0), torch.inf)
    return key, (key <= 64.0 * tol).any(-1)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Sum of products over the last dimension, in index order."""
    total = x[..., 0] * y[..., 0]
    for k in range(1, x.shape[-1]):
        total = total + x[..., k] * y[..., k]
    return total


def _total(x: Tensor) -> Tensor:
    total = x[..., 0]
    for k in range(1, x.shape[-1]):
        total = total + x[..., k]
    return total
