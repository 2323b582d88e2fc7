"""A batch of problems where it lives: closed form and faces in torch, with no host synchronisation."""

import torch
from torch import Tensor

from balanced_grad.solvers import _certificate
from balanced_grad.solvers._closed import two_rows_batch
from balanced_grad.solvers._faces import solve_faces
from balanced_grad.solvers._result import Status


def solve_on_device(G: Tensor, active: Tensor, tol: float, slack: float) -> tuple[Tensor, Tensor]:
    """Weights `(B, M)` and status `(B,)` of fp64 `(B, M, M)` Gramians, M <= 8."""
    G, finite = _masked(G, active)
    if G.shape[-1] == 1:
        weights, passed = active.to(G.dtype), torch.ones_like(finite)
    elif G.shape[-1] == 2:
        both = torch.stack(two_rows_batch(G.permute(1, 2, 0), tol, torch.where), -1)
        weights = torch.where(active.all(-1, keepdim=True), both, active.to(G.dtype))
        passed = torch.ones_like(finite)
    else:
        weights, passed = solve_faces(G, active, tol)
    T, w, on = G.permute(1, 2, 0), weights.mT, active.mT
    passed = passed & _certificate.convex_batch(T, slack, torch.where)
    passed = passed & _certificate.optimal_batch(T, _product(G, weights).mT, w, on, tol, torch.where)
    return _flagged(weights, active, finite, passed)


def _masked(G: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """`G` times a power of two, inactive rows 0, and all 0 where its active part is not finite; which are finite."""
    G = torch.where(active[:, :, None] & active[:, None, :], G, 0.0)
    finite = torch.isfinite(G).flatten(1).all(-1)
    G = torch.where(finite[:, None, None], G, 0.0)
    exponent = torch.frexp(G.diagonal(dim1=-2, dim2=-1).amax(-1))[1]
    return torch.ldexp(G, -exponent[:, None, None]), finite


def _flagged(weights: Tensor, active: Tensor, finite: Tensor, passed: Tensor) -> tuple[Tensor, Tensor]:
    """Weights with NaN where a problem is not finite and 0 off its rows, and the status of each."""
    some = active.any(-1)
    status = torch.where(passed, int(Status.SOLVED), int(Status.NOT_CONVERGED))
    status = torch.where(finite, status, int(Status.NON_FINITE))
    status = torch.where(some, status, int(Status.NO_ACTIVE_ROW))
    return torch.where(active, torch.where(finite[:, None], weights, torch.nan), 0.0), status


def duality_gap(G: Tensor, w: Tensor, active: Tensor) -> Tensor:
    """`max_i (w'Gw - (Gw)_i) / max_i G_ii` over the active rows, `(B,)`; NaN where `w` is, 0 with no row."""
    G = torch.where(active[:, :, None] & active[:, None, :], G, 0.0)
    scale = G.diagonal(dim1=-2, dim2=-1).amax(-1)
    G = G / torch.where(scale > 0.0, scale, 1.0)[:, None, None]
    product = _product(G, w)
    value = _product(w[:, None], product)[:, 0]
    return (value - torch.where(active, product, torch.inf).amin(-1)).clamp_min(0.0)


def _product(A: Tensor, x: Tensor) -> Tensor:
    """`A @ x` in index order, so that a problem's bits do not depend on its batch."""
    total = A[:, :, 0] * x[:, None, 0]
    for k in range(1, x.shape[-1]):
        total = total + A[:, :, k] * x[:, None, k]
    return total
