"""Segments of columns: the same numbers as a loop over them, whatever their lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balanced_grad.kernels import combine, gramian

lengths = st.lists(
    st.one_of(st.integers(0, 40), st.sampled_from([1023, 1024, 1025, 2048, 3000])), min_size=1, max_size=12
)


def case(lengths, count, dtype=torch.float32):
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    generator = torch.Generator().manual_seed(sum(lengths))
    return torch.randn(count, bounds[-1], generator=generator, dtype=torch.float64).to(dtype), bounds


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 4), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_gramian_per_segment(lengths, count, dtype):
    rows, bounds = case(lengths, count, dtype)
    got = gramian(rows, bounds)
    assert got.shape == (len(lengths), count, count)
    assert got.dtype == torch.float64
    for products, start, stop in zip(got, bounds[:-1], bounds[1:], strict=True):
        part = rows[:, start:stop].double()
        torch.testing.assert_close(products, part @ part.T, rtol=1e-6, atol=1e-6 * (stop - start + 1))
    torch.testing.assert_close(got.sum(0), gramian(rows), rtol=1e-6, atol=1e-6 * (rows.shape[1] + 1))


@settings(max_examples=40, deadline=None)
@given(lengths, st.integers(1, 4))
def test_combine_per_segment(lengths, count):
    rows, bounds = case(lengths, count)
    weights = torch.rand(len(lengths), count)
    out = torch.full_like(rows[0], torch.nan)
    assert combine(rows, weights, out, segments=bounds) is out
    for weight, start, stop in zip(weights, bounds[:-1], bounds[1:], strict=True):
        torch.testing.assert_close(out[start:stop], weight @ rows[:, start:stop], rtol=1e-5, atol=1e-5)


def test_a_non_finite_entry_stays_in_its_segment():
    rows, bounds = case([700, 9, 1024, 2000], 2)
    rows[0, 705] = torch.nan
    finite = gramian(rows, bounds).isfinite().flatten(1).all(1)
    assert finite.tolist() == [True, False, True, True]


def test_columns_of_a_wider_buffer():
    rows, bounds = case([500, 1500, 3], 3)
    wider = torch.randn(3, rows.shape[1] + 7)
    wider[:, 5:-2] = rows
    torch.testing.assert_close(gramian(wider[:, 5:-2], bounds), gramian(rows, bounds), rtol=0, atol=0)
    torch.testing.assert_close(gramian(rows.T.contiguous().T, bounds), gramian(rows, bounds), rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("bounds", [[0], [0, 3], [1, 5], [0, 4, 2, 5], [0, 6]])
def test_bounds_that_do_not_cover_the_columns(bounds):
    for call in (gramian, lambda rows, s: combine(rows, torch.ones(max(len(s) - 1, 1), 2), segments=s)):
        with pytest.raises(ValueError, match="rising from 0 to 5"):
            call(torch.ones(2, 5), bounds)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"give \(M, D\)"):
        gramian(torch.ones(5))
    with pytest.raises(TypeError, match="view_as_real"):
        gramian(torch.ones(2, 5, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"weights have shape \(3,\)"):
        combine(torch.ones(2, 5), torch.ones(3))
    with pytest.raises(ValueError, match=r"give \(5,\) torch.float32"):
        combine(torch.ones(2, 5), torch.ones(2), torch.ones(4))
    with pytest.raises(ValueError, match="implementation='fast'"):
        gramian(torch.ones(2, 5), implementation="fast")
