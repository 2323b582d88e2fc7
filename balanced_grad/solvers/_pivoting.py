"""Block principal pivoting, vectorised over a batch of problems (numpy, fp64).

The min-norm weights are `y / sum(y)`, where `y` solves `min y'Ky / 2 - c 1'y, y >= 0` with `K = G + c 11'`, for any
c > 0. Guess the support, solve on it, swap every row of the wrong sign, repeat (Kostreva 1978; Júdice & Pires 1994).
The first guess is the shortest row and the rows that shorten it. Elimination commutes with any scaling of the rows
and every threshold is relative to the rows' own norms, so norms need no equilibration. The batch is the last axis.

A problem that is unsettled after a few guesses, or whose minimiser may not be unique or is ill-conditioned, is left to
`_active_set`.
"""

import numpy as np
from numpy.typing import NDArray

from balanced_grad.solvers._active_set import GUESSES, Array, Mask, least_pivot

Counts = NDArray[np.int64]
_CACHED = 1 << 15  # matrix entries worked on at once


def solve_batch(G: Array, active: Mask, tol: float) -> tuple[Array, Counts, Mask]:
    """Weights `(M, B)` of `(M, M, B)` Gramians, guesses made `(B,)`, and which problems are settled `(B,)`."""
    M, B = active.shape
    index = np.arange(M)
    lengths = np.where(active, G[index, index], np.inf)
    shortest = lengths.argmin(0)
    c = lengths[shortest, np.arange(B)]
    support = active & (G[:, shortest, np.arange(B)] <= c)
    weights, guesses, settled = np.zeros((M, B)), np.zeros(B, np.int64), np.zeros(B, np.bool_)
    todo = np.flatnonzero((c > 0.0) & np.isfinite(c))
    if len(todo) < B:
        G, c, active, support = G[:, :, todo], c[todo], active[:, todo], support[:, todo]
    for _ in range(GUESSES):
        if not len(todo):
            break
        y, sound, wrong, tie = _guess(G, c, support, active, tol)
        guesses[todo] += 1
        done = sound & ~wrong.any(0)
        weights[:, todo[done]] = (y / _total(y))[:, done]
        settled[todo[done]] = ~tie[done]
        more = np.flatnonzero(sound & ~done)
        todo, G, c, active = todo[more], G[:, :, more], c[more], active[:, more]
        support = (support ^ wrong)[:, more]
    return weights, guesses, settled


def _guess(G: Array, c: Array, support: Mask, active: Mask, tol: float) -> tuple[Array, Mask, Mask, Mask]:
    """The minimiser on each support, whether it can be trusted, its rows of the wrong sign, and whether it is tied."""
    M, B = support.shape
    size = max(8, _CACHED // (M * M))
    parts = []
    for k in range(0, B, size):
        part = slice(k, k + size)
        K = G[:, :, part] + c[part]
        y, sound = _solve_on(K, c[part], support[:, part], least_pivot(tol))
        parts.append((y, sound, *_signs(K, c[part], y, support[:, part], active[:, part], tol)))
    y, sound, wrong, tie = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
    return y, sound, wrong, tie


def _solve_on(K: Array, c: Array, support: Mask, least: float) -> tuple[Array, Mask]:
    """`(M, B)` free minimisers on `support`, 0 elsewhere, and which had no small pivot `(B,)`."""
    M = len(support)
    index = np.arange(M)
    T = np.where(support & support[:, None], K, 0.0)
    T[index, index] += ~support
    y = c * support
    for k in range(M - 1):
        row = T[k, k + 1 :] / T[k, k]
        T[k + 1 :, k + 1 :] -= T[k, k + 1 :, None] * row
        y[k + 1 :] -= row * y[k]
        T[k, k + 1 :] = row
    pivots = T[index, index]
    y /= pivots
    for k in range(M - 1, 0, -1):
        y[:k] -= T[:k, k] * y[k]
    sound = np.logical_and.reduce(~support | (pivots > least * K[index, index]))
    return y, sound & np.logical_or.reduce(support)


def _signs(K: Array, c: Array, y: Array, support: Mask, active: Mask, tol: float) -> tuple[Mask, Mask]:
    """Rows on the wrong side of the optimality conditions, and whether rows off the support are too close to call."""
    index = np.arange(len(y))
    roots = np.sqrt(np.maximum(K[index, index], 0.0))
    slack = -c + K[:, 0] * y[0]
    for k in range(1, len(y)):
        slack += K[:, k] * y[k]
    near = tol * (roots * _total(roots * np.abs(y)) + c)
    off = active & ~support
    wrong = (support & (y <= 0.0)) | (off & (slack < -near))
    return wrong, (off & (np.abs(slack) <= 4.0 * near)).any(0)


def _total(rows: Array) -> Array:
    """Sum over the first axis in index order, whatever the batch."""
    total: Array = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total
