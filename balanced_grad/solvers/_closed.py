"""Closed forms for two and three rows: in plain floats for one problem, elementwise for a batch, to the same bits.

Every difference is taken between entries of `G` before anything is multiplied: for near-parallel rows these
differences are exact (Sterbenz), so the weights keep the digits that `G` has. `G` is symmetric.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from balanced_grad.solvers._active_set import Array, Mask

Matrix = Sequence[Sequence[float]]
_TURNS = ((0, 1, 2), (1, 2, 0), (2, 0, 1))
_CLEAR = 2.0**-16  # share of its scale above which det leaves a residual below the certificate's bar


def two_rows(G: Matrix, tol: float) -> tuple[float, float]:
    """Min-norm weights of two rows (Désidéri 2012), exact to a few roundings; rows equal to `tol` share evenly."""
    (g11, g12), (_, g22) = G
    a, b = g11 - g12, g22 - g12
    length, noise = a + b, tol * (g11 + g22)  # |g1 - g2|^2
    if abs(a) <= noise and abs(b) <= noise:
        return 0.5, 0.5
    if a <= 0.0:
        return 1.0, 0.0
    if b <= 0.0:
        return 0.0, 1.0
    return b / length, a / length


def two_rows_batch(G: Any, tol: float, where: Callable[..., Any]) -> tuple[Any, Any]:
    """`two_rows` on numpy or torch arrays `(2, 2, B)`, branch-free; `where` is the array library's."""
    g11, g12, g22 = G[0, 0], G[0, 1], G[1, 1]
    a, b = g11 - g12, g22 - g12
    length, noise = a + b, tol * (g11 + g22)
    same = (abs(a) <= noise) & (abs(b) <= noise)
    safe = where(same | (length == 0.0), 1.0, length)
    w1 = where(same, 0.5, where(a <= 0.0, 1.0, where(b <= 0.0, 0.0, b / safe)))
    w2 = where(same, 0.5, where(a <= 0.0, 0.0, where(b <= 0.0, 1.0, a / safe)))
    return w1, w2


def three_rows(G: Matrix, tol: float) -> tuple[list[float], bool] | None:
    """Min-norm weights of three rows and whether their residual is sure to be small; None unless clearly unique.

    At a vertex and on an edge each weight is a quotient of single differences, so it is exact to a few roundings.
    Inside the residual over its terms is at most 32 roundings times `scale / det`.
    """
    g, noise = G, 8.0 * tol
    inside = _interior(g, noise)
    if inside is not None:
        return inside
    for i, j, k in _TURNS:  # a vertex
        g_ii, slack = g[i][i], min(g[i][j], g[i][k]) - g[i][i]
        if slack >= -noise * g_ii:
            return (_place(i, 1.0, j, 0.0), True) if slack > noise * g_ii else None
    for i, j, k in _TURNS:  # an edge
        g_ii, g_ij, g_jj, g_ik, g_jk = g[i][i], g[i][j], g[j][j], g[i][k], g[j][k]
        a, b = g_ii - g_ij, g_jj - g_ij
        length = a + b
        if length <= noise * (g_ii + g_jj):
            return None
        if a > 0.0 and b > 0.0:
            w_i, w_j = b / length, a / length
            slack = w_i * (g_ik - g_ii) + w_j * (g_jk - g_ij)
            reach = noise * (w_i * (abs(g_ik) + g_ii) + w_j * (abs(g_jk) + abs(g_ij)))
            if slack >= -reach:
                return (_place(i, w_i, j, w_j), True) if slack > reach else None
    return None


def three_rows_batch(G: Array, tol: float) -> tuple[Array, Mask]:
    """`three_rows` on `(3, 3, B)`: weights `(3, B)`, and where they are settled `(B,)`."""
    g, noise = G, 8.0 * tol
    w = np.zeros(g.shape[1:])
    r = np.where(g[1, 1] < g[0, 0], 1, 0)
    r = np.where(g[2, 2] < np.minimum(g[0, 0], g[1, 1]), 2, r)
    s, t, b = (r + 1) % 3, (r + 2) % 3, np.arange(len(r))
    w_r, w_s, w_t, det, scale = _plane(g[r, r, b], g[s, s, b], g[t, t, b], g[r, s, b], g[r, t, b], g[s, t, b])
    settled = (det > noise * scale) & (np.minimum(np.minimum(w_r, w_s), w_t) > 0.0)
    for row, value in ((r, w_r), (s, w_s), (t, w_t)):
        w[row, b] = np.where(settled, value, 0.0)
    ended = settled
    for i, j, k in _TURNS:
        slack, reach = np.minimum(g[i, j], g[i, k]) - g[i, i], noise * g[i, i]
        hit = ~ended & (slack > reach)
        w[i] = np.where(hit, 1.0, w[i])
        settled, ended = settled | hit, ended | (slack >= -reach)
    for i, j, k in _TURNS:
        a, b = g[i, i] - g[i, j], g[j, j] - g[i, j]
        length = a + b
        ended = ended | (length <= noise * (g[i, i] + g[j, j]))
        w_i, w_j = b / length, a / length
        slack = w_i * (g[i, k] - g[i, i]) + w_j * (g[j, k] - g[i, j])
        reach = noise * (w_i * (abs(g[i, k]) + g[i, i]) + w_j * (abs(g[j, k]) + abs(g[i, j])))
        inside = ~ended & (a > 0.0) & (b > 0.0)
        hit = inside & (slack > reach)
        w[i], w[j] = np.where(hit, w_i, w[i]), np.where(hit, w_j, w[j])
        settled, ended = settled | hit, ended | (inside & (slack >= -reach))
    return w, settled


def _place(i: int, w_i: float, j: int, w_j: float) -> list[float]:
    weights = [0.0, 0.0, 0.0]
    weights[i], weights[j] = w_i, w_j
    return weights


def _interior(g: Matrix, noise: float) -> tuple[list[float], bool] | None:
    """The point of the triangle's plane nearest 0, if it is inside; edges from the shortest row."""
    r = 1 if g[1][1] < g[0][0] else 0
    r = 2 if g[2][2] < g[r][r] else r
    i, j = (r + 1) % 3, (r + 2) % 3
    try:
        w_r, w_i, w_j, det, scale = _plane(g[r][r], g[i][i], g[j][j], g[r][i], g[r][j], g[i][j])
    except ZeroDivisionError:
        return None
    if not (det > noise * scale and min(w_r, w_i, w_j) > 0.0):
        return None
    weights = [0.0, 0.0, 0.0]
    weights[r], weights[i], weights[j] = w_r, w_i, w_j
    return weights, det > _CLEAR * scale


def _plane(g_rr: Any, g_ii: Any, g_jj: Any, g_ri: Any, g_rj: Any, g_ij: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Weights of the plane's nearest point (floats or arrays), its determinant, and the scale of det's noise."""
    b_i, b_j = g_rr - g_ri, g_rr - g_rj
    e_ii, e_jj, e_ij = (g_ii - g_ri) + b_i, (g_jj - g_rj) + b_j, (g_ij - g_rj) + b_i
    det = e_ii * e_jj - e_ij * e_ij
    w_i, w_j = (b_i * e_jj - b_j * e_ij) / det, (b_j * e_ii - b_i * e_ij) / det
    # the e are known to within a rounding of the g they come from: below that det is noise
    return 1.0 - w_i - w_j, w_i, w_j, det, g_ii * e_jj + g_jj * e_ii
