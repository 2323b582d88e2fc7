"""What a status says is so: judged without units, whatever the method, the dtype and the calls before."""

import itertools
import warnings

import numpy as np
import pytest
import torch

from balanced_grad.solvers import Status, min_norm
from balanced_grad.solvers._certificate import optimal, optimal_batch

G3 = torch.tensor([[2.0, 0.5, -0.2], [0.5, 1.0, 0.1], [-0.2, 0.1, 3.0]], dtype=torch.float64)
PREFER = torch.tensor([0.3, 0.0, 0.1], dtype=torch.float64)
METHODS = ("auto", "scipy", "cvxpy")
SCALES = (1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6, 1e12)


def worst_exchange(G, linear, lower, upper, w):
    """By how much moving weight from one row to another goes downhill, over the size of the slopes' terms."""
    slope, roots = 2 * G @ w + linear, G.diagonal().sqrt()
    reach = 2 * roots * (roots @ w) + (linear - linear.min()).abs()
    down, up = w > lower + 1e-12, w < upper - 1e-12
    gain = (slope[:, None] - slope) / (reach[:, None] + reach)
    return gain[down][:, up].max().clamp_min(0.0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [1e2, 1e3, 1e4, 1e5])
def test_spread_norms_with_a_bound_that_does_not_bind(method, ratio):
    G = torch.diag(torch.tensor([ratio**-2, 1.0, ratio**2], dtype=torch.float64))
    exact = min_norm(G).weights
    result = min_norm(G, upper=1 - 1e-12, method=method)
    assert result.status == Status.SOLVED
    assert result.weights @ G @ result.weights <= (1 + 1e-8) * (exact @ G @ exact)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["normal", "spread_norms", "duplicates", "rank_deficient", "narrow_cone", "zero_row"])
def test_solved_means_that_no_exchange_goes_downhill(method, name, families):
    for M, seed in itertools.product((2, 3, 5, 9), range(3)):
        G = families[name].gramian(M, seed)
        generator = torch.Generator().manual_seed(seed)
        for share in (0.0, 1e-6, 1e-1, 1e3):
            linear = share * G.diagonal().max() * torch.randn(M, generator=generator, dtype=torch.float64)
            result = min_norm(G, linear=linear, lower=0.2 / M, upper=1.5 / M, method=method)
            assert result.status == Status.SOLVED
            assert worst_exchange(G, linear, 0.2 / M, 1.5 / M, result.weights) <= 1e-9
            assert abs(result.weights.sum() - 1) <= 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_terms_of_any_size_beside_the_gramian(method):
    """With a small Gramian the preference decides, with a large one it does not matter."""
    for scale in SCALES:
        result = min_norm(scale * G3, linear=PREFER, method=method)
        assert result.status == Status.SOLVED
        assert worst_exchange(scale * G3, PREFER, 0.0, 1.0, result.weights) <= 1e-9
    small = min_norm(1e-7 * G3, linear=PREFER, method=method).weights
    torch.testing.assert_close(small, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", SCALES)
def test_units_change_nothing(method, scale):
    expected = min_norm(G3, linear=PREFER, lower=0.1, upper=0.6, method=method).weights
    got = min_norm(scale * G3, linear=scale * PREFER, lower=0.1, upper=0.6, method=method)
    torch.testing.assert_close(got.weights, expected, rtol=1e-9, atol=1e-9)
    assert got.status == Status.SOLVED
    shifted = min_norm(G3, linear=PREFER + scale, lower=0.1, upper=0.6, method=method).weights
    torch.testing.assert_close(shifted, expected, rtol=1e-3 * max(scale, 1e-6) / 1e9 + 1e-9, atol=1e-9 + scale * 1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_question_has_the_same_bits_whatever_came_between(method):
    def ask(scale, rows=3):
        return min_norm(scale * G3[:rows, :rows], linear=PREFER[:rows], method=method).weights

    first = {scale: ask(scale) for scale in (1e-8, 1.0, 1e-3)}
    for scale in (1.0, 1e-8, 1e8, 1.0, 1e-3, 1e-8):
        ask(scale, 2)
        again = ask(scale)
        assert again.isfinite().all()
        assert scale not in first or torch.equal(again, first[scale])


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_rows_and_ties(method, families):
    for name, seed in itertools.product(("normal", "duplicates", "spread_norms"), range(3)):
        G = families[name].gramian(6, seed)
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        expected = min_norm(G, method=method, upper=0.9).weights
        got = min_norm(G[order][:, order], method=method, upper=0.9).weights
        torch.testing.assert_close(got, expected[order], rtol=0, atol=1e-9)
    for kind in ({}, {"upper": 0.9}, {"lower": 0.01}, {"linear": torch.full((2,), 3.0)}):
        even = min_norm(torch.ones(2, 2, dtype=torch.float64), method=method, **kind).weights
        torch.testing.assert_close(even, torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
def test_a_duplicate_shares_what_the_row_had(method):
    alone = min_norm(G3, linear=PREFER, method=method).weights
    index = torch.tensor([0, 1, 2, 1])
    twice = min_norm(G3[index][:, index], linear=PREFER[index], method=method).weights
    torch.testing.assert_close(twice, torch.cat([alone[:1], alone[1:2] / 2, alone[2:], alone[1:2] / 2]))


@pytest.mark.parametrize("method", METHODS)
def test_inequalities_of_any_unit(method):
    A, b = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]), torch.tensor([0.1, -0.4], dtype=torch.float64)
    expected = min_norm(G3, inequalities=(A, b), method=method)
    assert expected.weights[0] <= 0.1 + 1e-12
    assert expected.weights[2] >= 0.4 - 1e-12
    for scale in (1e-12, 1e-6, 1e6, 1e12):
        got = min_norm(G3, inequalities=(scale * A.double(), scale * b.double()), method=method)
        torch.testing.assert_close(got.weights, expected.weights, rtol=0, atol=1e-7)
    none = min_norm(G3, inequalities=(torch.ones(1, 3), torch.tensor([torch.inf])), method=method)
    torch.testing.assert_close(none.weights, min_norm(G3).weights, rtol=0, atol=1e-9)


@pytest.mark.parametrize("part", ["A", "b"])
@pytest.mark.parametrize("method", METHODS)
def test_inequalities_that_are_no_numbers(method, part):
    A, b = torch.ones(1, 3), torch.ones(1)
    (A if part == "A" else b).fill_(torch.nan)
    with pytest.raises(ValueError, match=f"inequalities.*{part} is not finite"):
        min_norm(G3, inequalities=(A, b), method=method)
    with pytest.raises(ValueError, match="no weights satisfy"):
        min_norm(G3, inequalities=(torch.zeros(1, 3), -torch.ones(1)), method=method)


@pytest.mark.parametrize("M", range(1, 21))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_size_and_shape(M, dtype):
    G = (torch.eye(M) + torch.diag(torch.arange(M) % 3.0)).to(dtype)
    weights = 1 / G.diagonal().double()
    methods = ["auto", "active_set", "scipy", *(["closed"] if M <= 3 else []), *(["faces"] if M <= 6 else [])]
    active = torch.arange(M) != 1
    for method, few in itertools.product(methods, (False, True)):
        expected = (weights * active if few else weights) / (weights * active if few else weights).sum()
        mask = {"active": active} if few else {}
        for gramian in (G, G[None], G.expand(2, 3, M, M)):
            result = min_norm(gramian, method=method, **mask)
            assert result.weights.dtype is (dtype if dtype is torch.float64 else torch.float32)
            assert (result.status == Status.SOLVED).all()
            wide = result.weights.double()
            torch.testing.assert_close(wide, expected.expand_as(wide), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("M", [2, 3, 4, 6, 9, 12])
@pytest.mark.parametrize("method", ["auto", "faces", "active_set", "scipy", "cvxpy"])
def test_an_indefinite_matrix_is_no_gramian(M, method):
    """There is no shortest vector: whatever comes back is feasible and not called solved."""
    if method == "faces" and M > 6:
        pytest.skip("too many rows")
    for value in (2.0, -2.0):
        G = torch.full((M, M), value, dtype=torch.float64).fill_diagonal_(1.0)
        for batch in (G, G[None], torch.stack([G, torch.eye(M, dtype=torch.float64)])):
            result = min_norm(batch, method=method)
            status = result.status.flatten()
            assert status[0] == Status.NOT_CONVERGED
            assert (status[1:] == Status.SOLVED).all()
            torch.testing.assert_close(result.weights.sum(-1), torch.ones(batch.shape[:-2], dtype=torch.float64))
            assert (result.weights >= 0).all()


@pytest.mark.parametrize("M", [2, 3, 4, 6, 12])
def test_only_the_symmetric_part_counts(M, families):
    G = families["normal"].gramian(M, 0)
    skew = torch.randn(M, M, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    skewed = G + skew - skew.T
    expected = min_norm(G).weights
    for method in ("auto", "active_set", "scipy", "cvxpy", *(["faces"] if M <= 6 else [])):
        torch.testing.assert_close(min_norm(skewed, method=method).weights, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(min_norm(skewed[None], method=method).weights[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("M", [2, 3, 5, 9])
@pytest.mark.parametrize("method", ["auto", "faces", "active_set", "scipy"])
def test_the_ends_of_the_range(M, method):
    if method == "faces" and M > 6:
        pytest.skip("too many rows")
    G = torch.diag(torch.arange(1, M + 1, dtype=torch.float64))
    expected = min_norm(G).weights
    for scale in (1e-300, 1e-290, 1e290, 1e307):
        for gramian in (G * scale, G[None] * scale):
            result = min_norm(gramian, method=method)
            torch.testing.assert_close(result.weights.reshape(M), expected, rtol=1e-9, atol=1e-9)
            assert result.solved.all()


@pytest.mark.parametrize("M", [2, 3, 4, 6, 12])
@pytest.mark.parametrize("method", ["auto", "faces", "active_set"])
def test_parallel_gradients_of_different_norm_are_no_tie(M, method):
    """Norms that differ by 5e-4 are far above float32's rounding of a Gramian: the shortest takes all."""
    if method == "faces" and M > 6:
        pytest.skip("too many rows")
    norms = 1 + 5e-4 * torch.arange(M, dtype=torch.float64)
    G = (norms[:, None] * norms).float()
    for gramian in (G, G[None]):
        weights = min_norm(gramian, method=method).weights.reshape(M)
        torch.testing.assert_close(weights, torch.eye(M)[0], rtol=0, atol=1e-4)


def test_no_warning_and_no_nan_of_a_hard_problem():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exponent in range(-30, 31, 6):
            G = torch.diag(10.0 ** torch.tensor([-exponent, 0, exponent], dtype=torch.float64))
            for method in METHODS:
                result = min_norm(G, linear=PREFER, upper=0.8, method=method)
                assert result.weights.isfinite().all()
                assert result.status == Status.SOLVED


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (0.1, 0.7), (0.25, 0.5)])
def test_gap_is_the_largest_gain_over_the_corners(method, lower, upper):
    """Also of an indefinite matrix, where the point need not be a minimiser."""
    for G in (G3, G3 + 9 * torch.ones(3, 3), G3 - torch.diag(torch.tensor([0.0, 9.0, 0.0]))):
        scale = G.diagonal().max()
        result = min_norm(G, linear=PREFER, lower=lower, upper=upper, method=method)
        slope = G @ result.weights + 0.5 * PREFER
        free = 1 - 3 * lower
        corners = []
        for order in itertools.permutations(range(3)):
            corner, rest = torch.full((3,), lower, dtype=torch.float64), free
            for i in order:
                corner[i] += min(upper - lower, rest)
                rest -= min(upper - lower, rest)
            corners.append(slope @ corner)
        expected = (slope @ result.weights - min(corners)) / scale
        torch.testing.assert_close(result.gap, expected, rtol=1e-9, atol=1e-9)


def test_the_codes_are_those_of_saved_results():
    assert [(status.name, status.value) for status in Status] == [
        ("SOLVED", 0),
        ("NO_ACTIVE_ROW", 1),
        ("NON_FINITE", 2),
        ("NOT_CONVERGED", 3),
    ]


@pytest.mark.parametrize("exponent", [-200, -80, 0, 80, 200])
def test_what_is_clear_cut_is_so_in_any_unit(exponent, families):
    """The same steps to the same bits, alone and in a batch."""
    for name, M in itertools.product(("normal", "narrow_cone", "spread_norms", "duplicates"), (2, 3, 5, 8)):
        G = torch.stack([families[name].gramian(M, seed) for seed in range(5)])
        for gramian in (G, G[0], G[1]):
            expected, got = min_norm(gramian), min_norm(gramian * 2.0**exponent)
            assert torch.equal(got.weights, expected.weights)
            assert torch.equal(got.iterations, expected.iterations)


@pytest.mark.parametrize("exponent", [-400, -80, 0, 80, 400])
def test_the_certificate_tells_a_minimiser_from_its_neighbours(exponent, families):
    for name, M, seed in itertools.product(("normal", "spread_norms"), (2, 3, 6), range(5)):
        G = families[name].gramian(M, seed)
        roots, G = G.diagonal().sqrt() * 2.0 ** (exponent // 2), G * 2.0**exponent
        w = min_norm(G).weights
        for shift in (0.0, 1e-3, 0.3):
            moved = (1 - shift) * w + shift * torch.eye(M, dtype=torch.float64)[int(w.argmin())]
            if shift and torch.allclose(moved, w, rtol=0, atol=1e-5):
                continue
            passed = optimal((G @ moved).tolist(), moved.tolist(), roots.tolist(), 2.0**-48)
            columns, row = G[..., None].numpy(), moved[:, None].numpy()
            on = row >= 0
            assert passed == optimal_batch(columns, (G @ moved)[:, None].numpy(), row, on, 2.0**-48, np.where)[0]
            assert passed == (shift == 0.0)


@pytest.mark.parametrize("M", [2, 3])
def test_what_a_closed_form_is_sure_of_passes_the_certificate(M, family):
    """It is not asked where the residual is small by the form's own condition, so the two must agree."""
    for seed in range(60):
        G = family.gramian(M, seed)
        result = min_norm(G)
        product, roots = G @ result.weights, G.diagonal().sqrt()
        assert result.status == Status.SOLVED
        assert optimal(product.tolist(), result.weights.tolist(), roots.tolist(), 2.0**-48)
