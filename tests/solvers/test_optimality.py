"""The answer is optimal, in its own right and not against another solver."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balanced_grad.solvers import Status, min_norm

SIZES = (1, 2, 3, 4, 5, 8, 9, 16, 20)


def gap_of(G, w):
    """The duality gap from scratch, for weights renormalised in fp64."""
    G, w = G.double(), w.double() / w.double().sum()
    product = G @ w
    return (w @ product - product.min()) / G.diagonal().max().clamp_min(torch.finfo(torch.float64).tiny)


@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gap_is_at_most_the_bar_on_every_family(family, dtype, bar):
    for M in SIZES:
        for seed in range(4):
            G = family.gramian(M, seed, dtype)
            if not G.isfinite().all():
                continue
            weights, gap, _, status = min_norm(G)
            assert weights.dtype is dtype
            assert (weights >= 0).all()
            assert abs(weights.double().sum() - 1) <= 4 * M * torch.finfo(dtype).eps
            assert status == Status.SOLVED
            assert gap <= bar
            assert gap_of(G, weights) <= bar


@pytest.mark.parametrize("shape", [(1, 1), (2, 10), (20, 100), (100, 5), (64, 200)])
@pytest.mark.parametrize("scale", [0.0, 1e-10, 1e-5, 1.0, 1e5, 1e15])
def test_gap_at_any_scale_and_shape(shape, scale):
    generator = torch.Generator().manual_seed(shape[0])
    J = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    result = min_norm(J @ J.T)
    assert result.gap <= 1e-12
    assert gap_of(J @ J.T, result.weights) <= 1e-12


def test_kkt_conditions_row_by_row(families):
    """`(Gw)_i >= w'Gw` for every row, with equality where the row has weight, relative to that row's own norm."""
    for name in ("normal", "narrow_cone", "spread_norms", "mixed_norms"):
        for M in SIZES:
            for seed in range(5):
                G = families[name].gramian(M, seed)
                w = min_norm(G).weights
                slack = G @ w - w @ G @ w
                reach = 1e-12 * G.diagonal().sqrt() * (G.diagonal().sqrt() @ w)
                assert (slack >= -reach).all(), name
                assert (slack.abs() <= reach)[w > 0].all(), name


@pytest.mark.parametrize("M", SIZES)
def test_direction_is_common_descent(M, families):
    """Along the weighted sum no loss increases to first order, where the peers' solvers point against some."""
    for seed in range(20):
        J = families["spread_norms"].rows(M, seed)
        weights = min_norm(J @ J.T).weights
        direction, lengths = weights @ J, J.norm(dim=1)
        rounding = 1e-12 * lengths * (weights @ lengths)  # of the Gramian, which differs between BLAS libraries
        assert (J @ direction >= direction @ direction - rounding).all()


def test_permutation_equivariance(family):
    for M in (2, 3, 4, 5, 8, 12):
        for seed in range(4):
            G = family.gramian(M, seed)
            order = torch.randperm(M, generator=torch.Generator().manual_seed(seed))
            expected = min_norm(G).weights[order]
            permuted = G[order][:, order]
            difference = min_norm(permuted).weights - expected
            if family.name.startswith("near_"):  # weights are conditioned like 1 / (1 - cos), their point is not
                assert difference @ permuted @ difference <= 1e-14
            else:
                assert difference.abs().max() <= 1e-9


def test_common_scale_changes_nothing(family):
    if family.name in ("mixed_norms", "tiny", "huge"):
        pytest.skip("already at the ends of the range")
    for M in (2, 3, 5, 10):
        G = family.gramian(M, 0)
        expected = min_norm(G).weights
        for exponent in (-24, -12, -1, 1, 12, 24):
            weights = min_norm(G * 2.0 ** (4 * exponent)).weights
            torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-9)


def test_ties_go_to_the_shortest_weights():
    torch.testing.assert_close(min_norm(torch.zeros(6, 6)).weights, torch.full((6,), 1 / 6))
    line = torch.tensor([[1.0], [-1.0], [2.0], [-2.0]], dtype=torch.float64)
    assert_weights(min_norm(line @ line.T), [0.25] * 4)
    line = torch.tensor([[1.0], [-1.0], [3.0]], dtype=torch.float64)  # 0 = w1 - w2 + 3 w3, least |w|
    assert_weights(min_norm(line @ line.T), [1 / 3, 7 / 12, 1 / 12])
    line = torch.tensor([[1.0], [1.0], [-1.0], [10.0]], dtype=torch.float64)  # here w4 >= 0 binds
    assert_weights(min_norm(line @ line.T), [1 / 4, 1 / 4, 1 / 2, 0.0])


def assert_weights(result, expected):
    torch.testing.assert_close(result.weights, torch.tensor(expected, dtype=result.weights.dtype))


@pytest.mark.parametrize("M", [2, 3, 4, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_duplicates_share_evenly(M, dtype):
    generator = torch.Generator().manual_seed(M)
    for _ in range(10):
        J = torch.randn(M, 30, generator=generator, dtype=dtype)
        J[-1] = J[0]
        w = min_norm(J @ J.T).weights
        assert abs(w[0] - w[-1]) < 1e-6


def test_zero_rows_take_all_the_weight():
    J = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    J[1] = J[3] = 0.0
    torch.testing.assert_close(min_norm(J @ J.T).weights, torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0]))


def test_near_parallel_pair_keeps_the_digits_of_the_gramian():
    """Two rows at 1 - cos = 1e-12: the exact weights of this very G, in rational arithmetic."""
    from fractions import Fraction

    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        J = torch.randn(1, 50, generator=generator, dtype=torch.float64).expand(2, 50).clone()
        J[1] += 1e-6 * torch.randn(50, generator=generator, dtype=torch.float64)
        J *= 1.0 / J.norm(dim=1, keepdim=True)
        (g11, g12), (_, g22) = [[Fraction(x) for x in row] for row in (J @ J.T).tolist()]
        exact = min(max((g22 - g12) / (g11 + g22 - 2 * g12), Fraction(0)), Fraction(1))
        assert abs(min_norm(J @ J.T).weights[0].item() - float(exact)) < 1e-14


def test_slightly_indefinite_gramian():
    generator = torch.Generator().manual_seed(0)
    for M in (2, 3, 4, 8, 16):
        J = torch.randn(M, max(1, M // 2), generator=generator, dtype=torch.float64)
        noise = torch.randn(M, M, generator=generator, dtype=torch.float64)
        G = J @ J.T
        G = G - 1e-16 * torch.eye(M, dtype=G.dtype) * G.diagonal().max() + 1e-16 * (noise + noise.T)
        assert min_norm(G).gap <= 1e-12


entries = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, 1e-9, 1e-3, 1e3, 1e9, 1.0 + 1e-12, -1e9])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 6).flatmap(lambda d: st.lists(st.lists(entries, min_size=d, max_size=d), min_size=1, max_size=9)))
def test_adversarial_rows(rows):
    J = torch.tensor(rows, dtype=torch.float64)
    G = J @ J.T
    result = min_norm(G)
    assert result.solved
    assert gap_of(G, result.weights) <= 1e-12
    if len(rows) <= 6:
        assert gap_of(G, min_norm(G, method="faces").weights) <= 1e-12
