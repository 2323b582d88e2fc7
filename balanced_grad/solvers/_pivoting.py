"""Many problems at once on the host: block principal pivoting, vectorised over the batch (numpy, fp64).

The non-negative QP of `_active_set` by guessing the support, solving on it, and swapping every row of the wrong
sign (Kostreva 1978; Júdice & Pires 1994). The batch is the last axis, so all the arithmetic is elementwise and a
problem's bits do not depend on its neighbours. A problem that is still unsettled after a few guesses, or whose
minimiser may not be unique, is left to `_active_set`.
"""

import numpy as np

from balanced_grad.solvers._active_set import Array, Mask

_GUESSES = 8


def solve_clear(G: Array, active: Mask, tol: float) -> tuple[Array, Array, Mask]:
    """Min-norm weights `(B, M)` of `(B, M, M)` Gramians, systems solved `(B,)`, and which are settled `(B,)`."""
    B, M = active.shape
    diagonal = np.ascontiguousarray(G.diagonal(axis1=1, axis2=2).T)
    mask = np.ascontiguousarray(active.T)
    scale = np.where(mask, np.ldexp(1.0, -(np.frexp(diagonal)[1] // 2)), 0.0)
    a = scale / np.maximum(scale.max(0), np.finfo(np.float64).tiny)
    K = np.ascontiguousarray(G.transpose(1, 2, 0))
    K = 0.5 * K + 0.5 * K.transpose(1, 0, 2)
    K *= scale
    K *= scale[:, None]
    K += a * a[:, None]
    index = np.arange(M)
    K[index, index] += ~mask
    weights, iterations, settled = np.zeros((M, B)), np.zeros(B), np.zeros(B, dtype=np.bool_)
    todo = np.flatnonzero(((diagonal > 0.0) | ~mask).all(0))
    K, a, support = (K, a, mask) if len(todo) == B else (K[:, :, todo], a[:, todo], mask[:, todo])
    for _ in range(_GUESSES):
        if not len(todo):
            break
        y, least_pivot = _solve_on(K, a, support)
        wrong, tie = _signs(K, a, y, support, tol)
        iterations[todo] += 1
        done = ~wrong.any(0)
        weights[:, todo[done]] = (a * y)[:, done]
        settled[todo[done]] = ((least_pivot > max(1e-6, 1e4 * tol)) & ~tie.any(0))[done]
        more = ~done & (least_pivot > tol)
        todo, K, a, support = todo[more], K[:, :, more], a[:, more], (support ^ wrong)[:, more]
    return (weights / np.where(settled, _total(weights), 1.0)).T, iterations, settled


def _solve_on(K: Array, a: Array, support: Mask) -> tuple[Array, Array]:
    """`(M, B)` free minimisers on `support`, 0 elsewhere, and the least pivot `(B,)` of each elimination."""
    M = len(a)
    T = K * (support & support[:, None])
    index = np.arange(M)
    T[index, index] += ~support
    y = a * support
    with np.errstate(all="ignore"):  # a singular guess is dropped by its pivot
        for k in range(M - 1):
            row = T[k, k + 1 :] / T[k, k]
            T[k + 1 :, k + 1 :] -= T[k + 1 :, k, None] * row
            y[k + 1 :] -= row * y[k]
        y /= T[index, index]
        for k in range(M - 1, 0, -1):
            y[:k] -= T[:k, k] / T[index[:k], index[:k]] * y[k]
    return y, T[index, index].min(0)


def _signs(K: Array, a: Array, y: Array, support: Mask, tol: float) -> tuple[Mask, Mask]:
    """Rows on the wrong side of the optimality conditions, and rows off the support too close to call."""
    with np.errstate(all="ignore"):
        slack, reach = -a, a.copy()
        for k in range(len(a)):
            term = K[:, k] * y[k]
            slack += term
            reach += np.abs(term)
        near = tol * reach
        wrong = np.where(support, y <= 0.0, slack < -near)
        return wrong, ~support & (np.abs(slack) <= 4.0 * near) & (a > 0.0)


def _total(w: Array) -> Array:
    total = w[0].copy()
    for row in w[1:]:
        total += row
    return total
