"""Block principal pivoting for one small problem in plain floats: below nine rows this beats numpy's call overhead.

The algorithm and its thresholds are those of `_pivoting`.
"""

from collections.abc import Sequence
from math import sqrt
from operator import mul

from balanced_grad.solvers._active_set import GUESSES, least_pivot

Rows = Sequence[Sequence[float]]


def solve_floats(G: Rows, tol: float) -> tuple[list[float], int] | None:
    """Min-norm weights and guesses made; None if the answer is not clearly unique."""
    n = len(G)
    diagonal = [row[i] for i, row in enumerate(G)]
    c = min(diagonal)
    if not c > 0.0:
        return None
    shortest = G[diagonal.index(c)]
    support = [i for i, g in enumerate(shortest) if g <= c]
    least = least_pivot(tol)
    for guess in range(1, GUESSES + 1):
        inner = _solve([[G[i][j] + c for j in support[: k + 1]] for k, i in enumerate(support)], c, least)
        if inner is None:
            return None
        y = [0.0] * n
        for i, y_i in zip(support, inner, strict=True):
            y[i] = y_i
        entering, tie = _off_support(G, diagonal, c, y, support, tol) if len(support) < n else ([], False)
        wrong = [i for i in support if not y[i] > 0.0] + entering
        if not wrong:
            total = sum(y)
            return None if tie else ([y_i / total for y_i in y], guess)
        support = sorted(set(support).symmetric_difference(wrong))
        if not support:
            return None
    return None


def _solve(K: Rows, c: float, least: float) -> list[float] | None:
    """`K^-1 c` by Cholesky from the lower triangle; None at a pivot too small to trust."""
    L: list[list[float]] = []
    y: list[float] = []
    for k_i in K:
        row: list[float] = []
        for k_ij, l_j in zip(k_i, L, strict=False):  # L holds the rows above this one only
            row.append((k_ij - sum(map(mul, row, l_j))) / l_j[-1])
        pivot = k_i[-1] - sum(map(mul, row, row))
        if not pivot > least * k_i[-1]:
            return None
        root = sqrt(pivot)
        y.append((c - sum(map(mul, row, y))) / root)
        row.append(root)
        L.append(row)
    for i in range(len(y) - 1, -1, -1):
        l_i = L[i]
        y_i = y[i] = y[i] / l_i[-1]
        for j in range(i):
            y[j] -= l_i[j] * y_i
    return y


def _off_support(
    G: Rows, diagonal: list[float], c: float, y: list[float], support: list[int], tol: float
) -> tuple[list[int], bool]:
    """Rows off the support that should be on it, and whether one is too close to call."""
    roots = [sqrt(g + c) for g in diagonal]
    reach = sum([root * abs(y_i) for root, y_i in zip(roots, y, strict=True)])
    shift = c * sum(y) - c
    entering, tie = [], False
    for i in set(range(len(G))).difference(support):
        slack = sum(map(mul, G[i], y)) + shift
        near = tol * (roots[i] * reach + c)
        if slack < -near:
            entering.append(i)
        tie = tie or abs(slack) <= 4.0 * near
    return entering, tie
