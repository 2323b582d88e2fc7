"""Block principal pivoting for one small problem in plain floats: below nine rows this beats numpy's call overhead.

The algorithm and its thresholds are those of `_pivoting`.
"""

from collections.abc import Sequence
from math import sqrt
from operator import mul

from balanced_grad.solvers._pivoting import GUESSES, least_pivot

Rows = Sequence[Sequence[float]]


def solve_floats(G: Rows, tol: float) -> tuple[list[float], int] | None:
    """Min-norm weights and guesses made; None if the answer is not clearly unique, or not finite."""
    n = len(G)
    c = min([row[i] for i, row in enumerate(G)])
    if not c > 0.0:
        return None
    K = [[g + c for g in row] for row in G]
    support = list(range(n))
    for guess in range(1, GUESSES + 1):
        inner = _solve([[K[i][j] for j in support] for i in support] if guess > 1 else K, c, least_pivot(tol))
        if inner is None:
            return None
        wrong = [i for i, y_i in zip(support, inner, strict=True) if not y_i > 0.0]
        y = [0.0] * n
        for i, y_i in zip(support, inner, strict=True):
            y[i] = y_i
        entering, tie = _off_support(K, c, y, support, tol) if guess > 1 else ([], False)
        wrong += entering
        if not wrong:
            total = sum(y)
            return None if tie or not total < float("inf") else ([y_i / total for y_i in y], guess)
        support = sorted(set(support).symmetric_difference(wrong))
        if not support:
            return None
    return None


def _solve(K: Rows, c: float, least: float) -> list[float] | None:
    """`K^-1 c` by Cholesky from the lower triangle; None at a pivot too small to trust."""
    L: list[list[float]] = []
    y: list[float] = []
    for i, k_i in enumerate(K):
        row: list[float] = []
        for k_ij, l_j in zip(k_i, L, strict=False):  # L has the rows above i only
            row.append((k_ij - sum(map(mul, row, l_j))) / l_j[-1])
        pivot = k_i[i] - sum(map(mul, row, row))
        if not pivot > least * k_i[i]:
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


def _off_support(K: Rows, c: float, y: list[float], support: list[int], tol: float) -> tuple[list[int], bool]:
    """Rows off the support that should be on it, and whether one is too close to call."""
    reach = sum([sqrt(K[j][j]) * abs(y[j]) for j in support])
    entering, tie = [], False
    for i in set(range(len(K))).difference(support):
        slack = sum(map(mul, K[i], y)) - c
        near = tol * (sqrt(K[i][i]) * reach + c)
        if slack < -near:
            entering.append(i)
        tie = tie or abs(slack) <= 4.0 * near
    return entering, tie
