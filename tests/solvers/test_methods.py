"""Every method against cvxpy, against brute force, and against each other."""

import sys

import pytest
import torch

from balanced_grad.solvers import Status, min_norm

CLEAN = ("normal", "weakly_stationary", "narrow_cone", "rank_deficient", "more_rows_than_columns")


def methods(M):
    return ["auto", "active_set", "scipy", *(["closed"] if M <= 3 else []), *(["faces"] if M <= 8 else [])]


def objective(G, w):
    return w @ G @ w / G.diagonal().max().clamp_min(1e-300)


@pytest.mark.parametrize("M", [1, 2, 3, 4, 5, 6, 8, 11, 16])
def test_every_method_agrees_with_cvxpy(M, families):
    for name in CLEAN:
        for seed in range(5):
            G = families[name].gramian(M, seed)
            expected = min_norm(G, method="cvxpy")
            assert expected.gap <= 1e-6
            for method in methods(M):
                weights = min_norm(G, method=method).weights
                value = objective(G, weights)
                assert abs(value - objective(G, expected.weights)) <= 1e-6, (name, method)
                assert value <= objective(G, expected.weights) + 1e-12, (name, method)
                if name == "normal":
                    torch.testing.assert_close(weights, expected.weights, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("M", range(1, 17))
def test_two_thousand_problems_agree_with_cvxpy(M, families):
    G = torch.stack([families[name].gramian(M, 100 + seed) for name in CLEAN for seed in range(25)])
    expected, got = min_norm(G, method="cvxpy"), min_norm(G)
    for gramian, ours, theirs in zip(G, got.weights, expected.weights, strict=True):
        assert abs(objective(gramian, ours) - objective(gramian, theirs)) <= 1e-6


@pytest.mark.parametrize("M", [2, 3])
def test_no_point_of_a_grid_is_shorter(M, family):
    """Brute force over the simplex, a thousand problems in all."""
    steps = torch.linspace(0, 1, 61, dtype=torch.float64)
    grid = torch.stack((steps, 1 - steps), -1)
    if M == 3:
        pairs = torch.cartesian_prod(steps, steps)
        grid = torch.cat((pairs, 1 - pairs.sum(-1, keepdim=True)), -1)
        grid = grid[grid[:, 2] >= 0]
    for seed in range(30):
        G = family.gramian(M, seed)
        scale = G.diagonal().max().clamp_min(1e-300)
        best = ((grid @ (G / scale)) * grid).sum(-1).min()
        for method in ("auto", "faces"):
            w = min_norm(G, method=method).weights
            assert w @ (G / scale) @ w <= best + 1e-12


@pytest.mark.parametrize("M", [2, 3, 4, 6])
def test_own_methods_agree_to_rounding_ties_included(M, family):
    """Thousands of problems: faces, active set, and the vectorised path all return the same weights."""
    G = torch.stack([family.gramian(M, seed) for seed in range(30)])
    results = {method: min_norm(G, method=method) for method in ("auto", "faces", "active_set")}
    for method, result in results.items():
        assert (result.gap <= 1e-12).all(), method
        assert (result.status == Status.SOLVED).all(), method
        difference = result.weights - results["active_set"].weights
        if family.name.startswith("near_"):  # the weights are conditioned like 1 / (1 - cos), their point is not
            assert (torch.einsum("bi,bij,bj->b", difference, G, difference) <= 1e-14).all(), method
        else:
            assert difference.abs().max() <= 1e-9, method


def test_nnls_reference_is_exact_on_generic_problems(families):
    for M in (2, 5, 16):
        G = families["spread_norms"].gramian(M, 0)
        assert min_norm(G, method="scipy").gap <= 1e-12


@pytest.mark.parametrize(("method", "module"), [("cvxpy", "cvxpy"), ("scipy", "scipy.optimize")])
def test_a_named_solver_that_is_missing_is_not_replaced(method, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=module.partition(".")[0]):
        min_norm(torch.eye(3), method=method)
