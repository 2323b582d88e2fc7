"""Bounds, a linear term and extra inequalities, which cvxpy and scipy solve."""

import pytest
import torch

from balanced_grad.solvers import Status, min_norm

METHODS = ("auto", "scipy")


def gramian(M, seed=0):
    J = torch.randn(M, 3 * M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return J @ J.T


def on_segment(G, linear, low, high):
    """Two rows: the minimiser of w'Gw + l'w over w1 in [low, high], by hand."""
    a = G[0, 0] - 2 * G[0, 1] + G[1, 1]
    b = 2 * (G[0, 1] - G[1, 1]) + linear[0] - linear[1]
    return (-b / (2 * a)).clamp(low, high)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.3, 0.6), (0.0, 0.1)])
def test_two_rows_by_hand(method, low, high):
    for seed in range(5):
        G, linear = gramian(2, seed), torch.tensor([1.0, -2.0], dtype=torch.float64)
        lower, upper = torch.tensor([low, 0.0]), torch.tensor([high, 1.0])
        result = min_norm(G, linear=linear, lower=lower, upper=upper, method=method)
        assert result.status == Status.SOLVED
        expected = on_segment(G, linear, torch.tensor(low).double(), torch.tensor(high).double())
        torch.testing.assert_close(result.weights[0], expected, atol=2e-6, rtol=0)
        assert result.gap <= 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("M", [3, 6])
def test_bounds_are_kept_and_no_feasible_point_is_better(method, M):
    G = gramian(M)
    generator = torch.Generator().manual_seed(1)
    linear = torch.randn(M, generator=generator, dtype=torch.float64)
    result = min_norm(G, linear=linear, lower=0.05, upper=0.5, method=method)
    w = result.weights
    assert (w >= 0.05).all()
    assert (w <= 0.5).all()
    assert abs(w.sum() - 1) < 1e-12
    points = torch.distributions.Dirichlet(torch.ones(M, dtype=torch.float64)).sample((20000,))
    points = points[((points >= 0.05) & (points <= 0.5)).all(-1)]
    assert len(points) > 20
    value = ((points @ G) * points).sum(-1) + points @ linear
    assert w @ G @ w + linear @ w <= value.min() + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_the_gap_tells_a_bad_point_from_a_good_one(method):
    """A bound that binds leaves a simplex gap, but no gap of its own problem."""
    G = torch.diag(torch.tensor([1.0, 10.0, 10.0], dtype=torch.float64))
    result = min_norm(G, upper=0.5, method=method)
    product = G @ result.weights
    assert (result.weights @ product - product.min()) / 10.0 > 0.05
    assert result.gap <= 1e-8
    torch.testing.assert_close(result.weights, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_inequalities_bind(method):
    G = gramian(4)
    free = min_norm(G).weights
    k = int(free.argmax())
    A = torch.zeros(1, 4)
    A[0, k] = 1.0
    result = min_norm(G, inequalities=(A, torch.tensor([0.5 * float(free[k])])), method=method)
    torch.testing.assert_close(result.weights[k], 0.5 * free[k], atol=1e-6, rtol=0)
    assert result.gap <= 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_terms_broadcast_over_a_batch_and_follow_the_mask(method):
    G = torch.stack([gramian(4, seed) for seed in range(3)])
    active = torch.tensor([True, True, False, True])
    result = min_norm(G, upper=0.4, active=active, method=method)
    assert result.weights.shape == (3, 4)
    assert (result.weights[:, 2] == 0).all()
    assert (result.weights <= 0.4).all()
    on = [0, 1, 3]
    alone = min_norm(G[1][on][:, on], upper=0.4, method=method).weights
    torch.testing.assert_close(result.weights[1, on], alone, atol=1e-6, rtol=0)


def test_common_scale_with_the_linear_term_scaled_alike():
    G, linear = gramian(4), torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    expected = min_norm(G, linear=linear).weights
    for scale in (1e-24, 1e24):
        torch.testing.assert_close(min_norm(scale * G, linear=scale * linear).weights, expected, atol=1e-6, rtol=0)
