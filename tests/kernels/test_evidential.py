"""The per-dimension passes against plain float64 recurrences and against the pure functions of evidence."""

import pytest
import torch

from balanced_grad.evidence import fuse_gradients
from balanced_grad.kernels import evidential_fuse, evidential_step, moments_update

SIZES = [1, 7, 1023, 70_001]
BETA = 0.9


def state(count, size, dtype=torch.float32):
    return torch.zeros(count, size, dtype=dtype), torch.zeros(count, size, dtype=dtype), torch.zeros(count)


def batches(count, size, steps=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(size)
    return [(3 + torch.randn(count, size, generator=generator)).to(dtype) for _ in range(steps)]


def exact_moments(rows, beta=BETA):
    """Weighted mean and variance from their definition, in float64."""
    weights = torch.tensor([beta ** (len(rows) - 1 - k) for k in range(len(rows))], dtype=torch.float64)
    weights = (weights / weights.sum()).view(-1, 1, 1)
    stacked = torch.stack(rows).double()
    mean = (weights * stacked).sum(0)
    return mean, (weights * (stacked - mean).square()).sum(0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_moments_are_the_weighted_mean_and_variance(count, size):
    rows = batches(count, size)
    mean, variance, weight = state(count, size)
    for row in rows:
        moments_update(row, mean, variance, weight, BETA)
    want = exact_moments(rows)
    torch.testing.assert_close(mean.double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance.double(), want[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight, torch.full_like(weight, 1 - BETA**4))


def test_second_moment_and_variance_from_elsewhere():
    rows = batches(2, 50)
    _, second, weight = state(2, 50)
    _, given, other = state(2, 50)
    for row in rows:
        moments_update(row, None, second, weight, BETA)
        moments_update(row, None, given, other, BETA, new_variance=row.square())
    mean, variance = exact_moments(rows)
    torch.testing.assert_close(second.double(), variance + mean.square(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given, second, rtol=1e-5, atol=1e-5)
    before = given.clone()
    bad = torch.ones(2, 50)
    bad[0, 3], bad[1, 4] = torch.nan, torch.inf
    moments_update(rows[0], None, given, other, BETA, new_variance=bad)
    assert ((given == before) == ~bad.isfinite()).all()  # exactly those entries kept their value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_loss_scale_is_divided_out(dtype):
    plain, scaled = state(2, 300), state(2, 300)
    for row in batches(2, 300, dtype=dtype):
        moments_update(row, *plain, BETA)
        moments_update(row * 64, *scaled, BETA, scale=torch.tensor(64.0))
    torch.testing.assert_close(scaled, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_non_finite_row_moves_no_state(bad):
    mean, variance, weight = state(3, 100)
    rows = batches(3, 100)
    moments_update(rows[0], mean, variance, weight, BETA)
    moments_update(rows[1], mean, variance, weight, BETA)
    before = mean.clone(), variance.clone(), weight.clone()
    rows[2][1, 50] = bad
    moments_update(rows[2], mean, variance, weight, BETA)
    for now, then in zip((mean, variance, weight), before, strict=True):
        assert torch.equal(now[1], then[1])
        assert not torch.equal(now[0], then[0])
    after = mean.clone(), variance.clone(), weight.clone()
    moments_update(rows[3], mean, variance, weight, BETA, ok=torch.tensor(False))
    for now, then in zip((mean, variance, weight), after, strict=True):
        assert torch.equal(now, then)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_fuse_is_fuse_gradients(count, size, dtype):
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, size, generator=generator).to(dtype)
    variance = torch.rand(count, size, generator=generator).to(dtype)
    variance[0, ::5] = 0
    variance[-1, ::7] = torch.inf
    variance[0, ::11] = torch.nan
    rows[0, ::13] = torch.nan
    rows[:, ::17] = torch.inf
    present = torch.arange(count) != 1
    reference = torch.tensor(3.0, dtype=dtype)
    for given in (None, present):
        got = evidential_fuse(rows, variance, reference, kappa=2.0, present=given, sums=True)
        want, opinion = fuse_gradients(rows, variance, kappa=2.0, reference=reference, present=given)
        assert got.row.dtype == dtype
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got.row, want, rtol=tolerance, atol=tolerance, equal_nan=True)
        torch.testing.assert_close(got.belief, opinion.belief.double().sum(-1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got.uncertainty, opinion.uncertainty.double().sum(), rtol=1e-4, atol=1e-4)
        ranked = torch.cat([opinion.weights, torch.zeros(1, size)]).sort(0, descending=True)
        alone = ranked.values[0] > ranked.values[1]
        leads = [(alone & (ranked.indices[0] == i)).sum().item() for i in range(count)]
        assert (got.leading - torch.tensor(leads)).abs().max() <= 1e-3 * size  # equal to rounding


def test_equal_evidence_is_the_plain_sum_and_none_leads():
    rows = torch.randn(3, 1000)
    got = evidential_fuse(rows, torch.ones(3, 1000), torch.tensor(1.0), sums=True)
    torch.testing.assert_close(got.row, rows.sum(0))
    assert got.leading.tolist() == [0.0, 0.0, 0.0]
    none = evidential_fuse(rows, torch.ones(3, 1000), torch.tensor(1.0), present=torch.zeros(3, dtype=torch.bool))
    assert torch.equal(none.row, torch.zeros(1000))


@pytest.mark.parametrize("source", ["mean", "second moment", "given"])
def test_a_step_is_an_update_and_a_fusion(source):
    rows = batches(3, 70_001, 3)
    new = torch.rand(3, 70_001) if source == "given" else None
    one, two = state(3, 70_001), state(3, 70_001)
    one, two = ((None, *s[1:]) if source != "mean" else s for s in (one, two))
    reference, present = torch.tensor(2.0), torch.tensor([True, False, True])
    for row in rows:
        stepped = evidential_step(row, *one, BETA, reference, new_variance=new, present=present, sums=True)
        moments_update(row, *two, BETA, new_variance=new, ok=present)
        fused = evidential_fuse(row, two[1], reference, present=present, sums=True)
        for got, want in zip((*one[1:], *stepped), (*two[1:], *fused), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert not one[1][1].any()  # an absent row keeps its state


def test_refused_before_anything_moves():
    mean, variance, weight = state(2, 5)
    rows, one = torch.ones(2, 5), torch.tensor(1.0)
    refusals = [
        (lambda: moments_update(rows, mean, variance, weight, 1.0), "beta=1.0"),
        (lambda: moments_update(rows, mean[:, :4], variance, weight, 0.9), r"mean has shape \(2, 4\)"),
        (lambda: moments_update(rows, mean, variance, weight, 0.9, new_variance=rows), "both given"),
        (lambda: moments_update(rows, mean, variance, weight[:1], 0.9), r"one floating number per row, \(2,\)"),
        (lambda: evidential_fuse(rows, variance, one, kappa=-1.0), "kappa=-1.0"),
        (lambda: evidential_fuse(rows, variance[:1], one), r"variance has shape \(1, 5\)"),
        (lambda: evidential_fuse(rows, variance, rows), "one typical precision"),
        (lambda: evidential_step(rows, mean, variance, weight, 0.9, one, out=rows), r"give \(5,\)"),
        (lambda: evidential_step(rows, mean, variance, weight, 0.9, one, present=one > 0), "one bool per row"),
        (lambda: moments_update(rows, mean, variance, weight, 0.9, implementation="fast"), "implementation='fast'"),
    ]
    for call, message in refusals:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="keep it in float32"):
        moments_update(rows, mean.half(), variance, weight, 0.9)
    assert not torch.cat([mean, variance, weight.unsqueeze(1)], 1).any()
