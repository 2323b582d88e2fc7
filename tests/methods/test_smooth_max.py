"""The smooth maximum: bounds, limits, gradient, and its two implementations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balanced_grad.methods._smooth_max import smooth_max, smooth_max_on_host

LOSSES = st.lists(st.floats(-50, 50), min_size=1, max_size=6)


class TestSmoothMax:
    @given(LOSSES, st.floats(1e-3, 100))
    @settings(deadline=None, max_examples=100)
    def test_lies_below_the_maximum_by_at_most_mu_log_n_and_is_permutation_equivariant(self, values, smoothing):
        v = torch.tensor(values, dtype=torch.float64)
        value, weights = smooth_max(v, smoothing)
        assert max(values) - smoothing * math.log(len(values)) - 1e-9 <= value.item() <= max(values) + 1e-9
        assert weights.sum().item() == pytest.approx(1.0)
        flipped_value, flipped = smooth_max(v.flip(0), smoothing)
        torch.testing.assert_close(flipped.flip(0), weights)
        torch.testing.assert_close(flipped_value, value)

    @given(LOSSES, st.floats(1e-2, 100))
    @settings(deadline=None, max_examples=50)
    def test_weights_are_the_gradient(self, values, smoothing):
        v = torch.tensor(values, dtype=torch.float64, requires_grad=True)
        value, weights = smooth_max(v, smoothing)
        (gradient,) = torch.autograd.grad(value, v)
        torch.testing.assert_close(weights, gradient)

    def test_zero_smoothing_is_the_maximum_and_splits_ties(self):
        value, weights = smooth_max(torch.tensor([1.0, 3.0, 3.0]), 0.0)
        assert value.item() == 3.0
        assert weights.tolist() == [0.0, 0.5, 0.5]

    def test_infinite_smoothing_is_the_mean(self):
        value, weights = smooth_max(torch.tensor([1.0, 3.0]), math.inf)
        assert value.item() == 2.0
        assert weights.tolist() == [0.5, 0.5]

    @pytest.mark.parametrize("smoothing", [0.0, 1e-30, 1e-4, 0.3, 1e30, math.inf])
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_values_take_no_part(self, smoothing, bad):
        value, weights = smooth_max(torch.tensor([1.0, bad, 2.0]), smoothing)
        want_value, want = smooth_max(torch.tensor([1.0, 2.0]), smoothing)
        torch.testing.assert_close(value, want_value)
        torch.testing.assert_close(weights[[0, 2]], want)
        assert weights[1] == 0
        value, weights = smooth_max(torch.tensor([bad, bad]), smoothing)
        assert value == 0
        assert weights.tolist() == [0, 0]

    @given(st.lists(st.floats(-50, 50) | st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=6))
    @settings(deadline=None, max_examples=100)
    def test_plain_floats_give_the_same(self, values):
        for smoothing in (0.0, 1e-30, 1e-3, 0.3, 1e30, math.inf):
            value, weights = smooth_max(torch.tensor(values, dtype=torch.float64), smoothing)
            host_value, host_weights = smooth_max_on_host(values, smoothing)
            assert host_value == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
            assert host_weights == pytest.approx(weights.tolist(), rel=1e-12, abs=1e-12)

    def test_large_losses_and_small_smoothing_do_not_overflow(self):
        value, weights = smooth_max(torch.tensor([1e30, 1.0]), 1e-4)
        assert value.item() == pytest.approx(1e30)
        assert weights.tolist() == [1.0, 0.0]
