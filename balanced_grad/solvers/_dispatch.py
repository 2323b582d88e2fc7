"""`min_norm`: picks the method by size, batch and device."""

import numpy as np
import torch
from torch import Tensor

from balanced_grad.solvers import _checks, _device, _host, _reference
from balanced_grad.solvers._certificate import INDEFINITE
from balanced_grad.solvers._faces import MAX_ROWS
from balanced_grad.solvers._result import MinNormResult


def min_norm(
    gramian: Tensor,
    *,
    method: str = "auto",
    active: Tensor | None = None,
    linear: Tensor | None = None,
    lower: _checks.Bound = None,
    upper: _checks.Bound = None,
    inequalities: _checks.Inequalities = None,
) -> MinNormResult:
    """Weights of the shortest vector in the convex hull of M gradients, given their Gramian.

        minimise wᵀ G w [+ ℓᵀ w]   over   w ≥ 0, Σ_i w_i = 1

    The answer does not depend on a common scale of `G` nor on the order of the rows. Where the minimiser is not
    unique (duplicate rows, `G = 0`, 0 in the hull of dependent rows) it is the one of smallest `|w|`, where
    "not unique" means to within the rounding of `G`'s dtype. All arithmetic is fp64.

    Args:
        gramian: `G`, `(..., M, M)`, any batch shape, any device; fp16 and bf16 are promoted to fp32.
        method: default `"auto"`. On the CPU: closed forms (M <= 3), and beyond that `"active_set"`, or block pivoting
            vectorised over a batch with `"active_set"` where the answer is not clear-cut. On
            other devices: `"closed"` (M <= 2) or `"faces"` (M <= 8) on the device with no host synchronisation,
            and beyond that one explicit copy to the host and back. To name one: `"closed"` (M <= 3), `"faces"`
            and `"active_set"` solve a batch to the bits of its problems alone; `"cvxpy"` (Clarabel) and
            `"scipy"` (NNLS; SLSQP with the terms below) are references.
        active: `(..., M)` bool; rows with False are not in the problem, whatever they hold, and get weight 0.
        linear: `ℓ`, `(..., M)`, a linear preference term. This and the next three are solved on the host, by a
            primal active set that starts from the point of `"cvxpy"` or `"scipy"` where one is named.
        lower: `(..., M)` or a number, least weight of each active row (besides 0).
        upper: `(..., M)` or a number, largest weight of each active row (besides 1).
        inequalities: `(A, b)`, `(K, M)` and `(K,)`: `A w <= b` for every problem, in any unit; `b` of inf is none.

    Returns:
        `MinNormResult(weights, gap, iterations, status)`. `weights` has the (promoted) dtype of `gramian`; `gap`
        is that of the fp64 weights, with a linear term and bounds the Frank-Wolfe gap `max_v grad'(w - v) / 2`,
        over the largest diagonal entry. `SOLVED` is what passed the optimality conditions, row by row and relative
        to the rows' norms, of a matrix without an eigenvalue clearly below 0; whatever fails them is
        `NOT_CONVERGED`. Only the symmetric part of `G` counts. Non-finite input gives NaN weights and
        `Status.NON_FINITE`, no error.

    Raises:
        TypeError: `gramian` or `active` is no tensor of the right kind.
        ValueError: a shape, dtype or method that does not fit, or bounds and inequalities without a solution.

    Source: Wolfe, "Finding the nearest point in a polytope" (1976); Désidéri, "Multiple-gradient descent
    algorithm" (2012); Sener & Koltun, "Multi-task learning as multi-objective optimization" (2018). The treatment
    of scale and of ties is ours.

    Examples:
        >>> import torch
        >>> from balanced_grad.solvers import Status, min_norm
        >>> gradients = torch.tensor([[2.0, 0.0], [0.0, 1.0], [4.0, 4.0]], dtype=torch.float64)
        >>> weights, gap, iterations, status = min_norm(gradients @ gradients.T)
        >>> weights
        tensor([0.2000, 0.8000, 0.0000], dtype=torch.float64)
        >>> bool(gap <= 1e-12), Status(status.item()).name
        (True, 'SOLVED')
    """
    _checks.check_gramian(gramian, method)
    dtype = torch.float64 if gramian.dtype is torch.float64 else torch.float32
    M = gramian.shape[-1]
    tol = _TOLERANCE[dtype] if M <= 4 else max(_TOLERANCE[dtype], M * 2.0**-50)
    slack = max(INDEFINITE, M * torch.finfo(gramian.dtype).eps)
    if active is not None:
        active = _checks.check_active(active, gramian)
    terms = None
    if not (linear is None and lower is None and upper is None and inequalities is None):
        terms = _checks.check_terms(gramian, method, linear, lower, upper, inequalities)
    elif method == "auto" and gramian.is_cpu and (gramian.dim() == 2 or _few(gramian)):
        return _host.solve_tensor(gramian, active, dtype, tol, slack)
    G = gramian.detach().to(torch.float64).reshape(-1, M, M)
    G = 0.5 * G + 0.5 * G.mT  # the form w'Gw sees no more of it
    if method == "auto" and terms is None:
        method = _choose(G)
    if method in ("closed", "faces"):
        on = torch.ones(G.shape[:2], dtype=torch.bool, device=G.device)
        on = on if active is None else active.to(G.device).reshape(-1, M)
        weights, status = _device.solve_on_device(G, on, tol, slack)
        solved = weights, _device.duality_gap(G, weights, on), torch.zeros_like(status), status
    else:
        solved = _on_host(G, None if active is None else active.reshape(-1, M), method, terms, tol, slack)
    batch = gramian.shape[:-2]
    weights, gap, iterations, status = (x.to(gramian.device) for x in solved)
    weights = weights.to(dtype).reshape(gramian.shape[:-1])
    return MinNormResult(weights, gap.reshape(batch), iterations.reshape(batch), status.reshape(batch))


# What rounding may hide, relative: noise of G's dtype, and of fp64 arithmetic on up to four rows.
_TOLERANCE = {torch.float64: 2.0**-48, torch.float32: 2.0**-22}
_MOST_LOOPED = 32  # problems with a closed form: up to here one after another is faster than all at once
_MOST_BATCHED = 16  # rows: beyond this a loop over LAPACK is faster than vectorising over the batch


def _few(gramian: Tensor) -> bool:
    """Whether a loop over the closed form is the fastest."""
    return gramian.shape[-1] <= 3 and 0 < gramian.numel() <= _MOST_LOOPED * gramian.shape[-1] ** 2


def _choose(G: Tensor) -> str:
    M = G.shape[-1]
    if not G.is_cpu and M <= MAX_ROWS:
        return "closed" if M <= 2 else "faces"
    return "batch" if M <= _MOST_BATCHED else "active_set"


def _on_host(
    G: Tensor, active: Tensor | None, method: str, terms: _checks.Terms | None, tol: float, slack: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The one copy to the host, and the solve there."""
    array = G.cpu().numpy()
    mask = None if active is None else active.cpu().numpy()
    if method == "batch":
        answers = _host.solve_batch(array, mask, tol, slack)
    else:
        mask = np.ones(array.shape[:2], np.bool_) if mask is None else mask
        if method == "active_set":
            answers = _host.solve_loop(array, mask, tol, slack)
        else:
            answers = _reference.solve_loop(array, mask, method, terms, tol, slack)
    weights, gap, iterations, status = (torch.from_numpy(x) for x in answers)
    return weights, gap, iterations, status
