"""The solvers of the published loops find the min-norm point."""

import numpy as np
import pytest
import torch

from balanced_grad.solvers import min_norm
from bench.published._solvers import by_cvxpy, by_slsqp, frank_wolfe


def gramian(count, seed):
    rows = np.random.default_rng(seed).standard_normal((count, 5 * count))
    rows[1:] -= 0.3 * rows[0]
    return 1e-3 * rows @ rows.T


def exact(G):
    return min_norm(torch.from_numpy(G)).weights.numpy()


@pytest.mark.parametrize("solve", [by_cvxpy, by_slsqp])
@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_solvers_equal_ours(solve, count, seed):
    G = gramian(count, seed)
    np.testing.assert_allclose(solve(G), exact(G), atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_frank_wolfe_closes_the_duality_gap_slowly(count, seed):
    G = gramian(count, seed)
    w = frank_wolfe(G)
    assert w.min() >= 0
    assert w.sum() == pytest.approx(1)
    assert w @ G @ w - (G @ w).min() <= 1e-2 * G.diagonal().max()
    assert w @ G @ w <= (1 + 1e-3) * exact(G) @ G @ exact(G)


@pytest.mark.parametrize(("first", "second", "wanted"), [(1.0, 3.0, 0.75), (3.0, 1.0, 0.25)])
def test_frank_wolfe_is_exact_for_two(first, second, wanted):
    assert frank_wolfe(np.diag([first, second])) == pytest.approx([wanted, 1 - wanted])


def test_frank_wolfe_stays_at_a_vertex():
    assert frank_wolfe(np.array([[1.0, 2.0], [2.0, 9.0]])) == pytest.approx([1.0, 0.0])


def test_frank_wolfe_takes_equal_gradients():
    assert frank_wolfe(np.ones((3, 3))) == pytest.approx([1 / 3] * 3)
