"""The per-dimension passes against plain float64 recurrences and against the pure functions of evidence."""

import pytest
import torch

from balanced_grad.evidence import fuse_gradients
from balanced_grad.kernels import evidential_fuse, moments_update

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
    one, each = torch.tensor(3.0, dtype=dtype), torch.arange(1.0, count + 1).to(dtype)
    for reference in (one, each):
        got = evidential_fuse(rows, variance, reference, kappa=2.0)
        # one reference of all rows there: what differs between them goes into the variances
        in_units = variance.double() * reference.double().expand(count)[:, None]
        want, _ = fuse_gradients(rows, in_units, kappa=2.0, reference=torch.ones(()))
        assert got.dtype == dtype
        tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


def test_equal_evidence_is_the_plain_sum():
    rows = torch.randn(3, 1000)
    torch.testing.assert_close(evidential_fuse(rows, torch.ones(3, 1000), torch.tensor(1.0)), rows.sum(0))


def test_it_writes_where_it_is_told():
    rows, variance, out = torch.randn(3, 1000), torch.rand(3, 1000), torch.zeros(1000, 2)[:, 0]
    got = evidential_fuse(rows, variance, torch.tensor(1.0), out=out)
    assert got is out
    torch.testing.assert_close(out, evidential_fuse(rows, variance, torch.tensor(1.0)))


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
        (lambda: evidential_fuse(rows, variance, rows), r"or one per row, \(2,\)"),
        (lambda: evidential_fuse(rows, variance, one, out=rows), r"give \(5,\)"),
        (lambda: moments_update(rows, mean, variance, weight, 0.9, implementation="fast"), "implementation='fast'"),
    ]
    for call, message in refusals:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="keep it in float32"):
        moments_update(rows, mean.half(), variance, weight, 0.9)
    assert not torch.cat([mean, variance, weight.unsqueeze(1)], 1).any()
