"""Closed forms for two and three rows, in plain floats.

Every difference is taken between entries of `G` before anything is multiplied: for near-parallel rows these
differences are exact (Sterbenz), so the weights keep the digits that `G` has.
"""

from collections.abc import Sequence

Rows = Sequence[Sequence[float]]


def two_rows(G: Rows, tol: float) -> tuple[float, float]:
    """Min-norm weights of two rows (Désidéri 2012); rows equal to within `tol` share evenly."""
    g11, g12, g22 = G[0][0], 0.5 * G[0][1] + 0.5 * G[1][0], G[1][1]
    a, b = g11 - g12, g22 - g12
    length = a + b  # |g1 - g2|^2
    if length <= tol * (g11 + g22):
        return 0.5, 0.5
    if a <= 0.0:
        return 1.0, 0.0
    if b <= 0.0:
        return 0.0, 1.0
    return b / length, a / length


def three_rows(G: Rows, tol: float) -> list[float] | None:
    """Min-norm weights of three rows, or None where the minimiser is not clearly unique."""
    g01, g02, g12 = (0.5 * G[i][j] + 0.5 * G[j][i] for i, j in ((0, 1), (0, 2), (1, 2)))
    g = ((G[0][0], g01, g02), (g01, G[1][1], g12), (g02, g12, G[2][2]))
    weights = [0.0, 0.0, 0.0]
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        g_ii, g_ij, g_ik = g[i][i], g[i][j], g[i][k]
        slack = min(g_ij, g_ik) - g_ii
        if slack > 8.0 * tol * g_ii:
            weights[i] = 1.0
            return weights
        if slack >= -8.0 * tol * g_ii:
            return None
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        a, b = g[i][i] - g[i][j], g[j][j] - g[i][j]
        length = a + b
        if length <= 8.0 * tol * (g[i][i] + g[j][j]):
            return None
        if a > 0.0 and b > 0.0:
            w_i, w_j = b / length, a / length
            slack = w_i * (g[i][k] - g[i][i]) + w_j * (g[j][k] - g[i][j])
            noise = 8.0 * tol * (w_i * (abs(g[i][k]) + g[i][i]) + w_j * (abs(g[j][k]) + abs(g[i][j])))
            if slack > noise:
                weights[i], weights[j] = w_i, w_j
                return weights
            if slack >= -noise:
                return None
    return _interior(g, tol)


def _interior(g: Rows, tol: float) -> list[float] | None:
    """The point of the triangle's plane nearest 0, if it is inside; edges from the shortest row."""
    r = min((0, 1, 2), key=lambda i: g[i][i])
    i, j = (r + 1) % 3, (r + 2) % 3
    b_i, b_j = g[r][r] - g[r][i], g[r][r] - g[r][j]
    e_ii, e_jj = (g[i][i] - g[r][i]) + b_i, (g[j][j] - g[r][j]) + b_j
    e_ij = (g[i][j] - g[r][j]) + b_i
    det = e_ii * e_jj - e_ij * e_ij
    # the e are known to within a rounding of the g they come from: below that det is noise
    if not det > 8.0 * tol * (g[i][i] * e_jj + g[j][j] * e_ii):
        return None
    weights = [0.0, 0.0, 0.0]
    weights[i] = (b_i * e_jj - b_j * e_ij) / det
    weights[j] = (b_j * e_ii - b_i * e_ij) / det
    weights[r] = 1.0 - weights[i] - weights[j]
    return weights if min(weights) > 0.0 else None
