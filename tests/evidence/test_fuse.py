"""Fusing gradients: exact limits, invariances, missing and broken entries."""

import math

import pytest
import torch

from balanced_grad.evidence import fuse_gradients

F64 = torch.float64


def random(*shape, seed=0):
    return torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("frame", ["modality", "dimension", "single"])
class TestFuse:
    def test_equal_evidence_is_the_plain_sum_exactly(self, frame):
        gradients = random(3, 10) - 0.5
        fused, _ = fuse_gradients(gradients, torch.full((3, 10), 0.2, dtype=F64), frame=frame)
        torch.testing.assert_close(fused, gradients.sum(0), rtol=1e-14, atol=1e-15)

    def test_rescaling_all_losses_rescales_the_result_only(self, frame):
        gradients, variance = random(3, 10) - 0.5, random(3, 10, seed=1)
        one, opinion = fuse_gradients(gradients, variance, frame=frame)
        scaled, same = fuse_gradients(1e3 * gradients, 1e6 * variance, frame=frame)
        torch.testing.assert_close(scaled, 1e3 * one)
        torch.testing.assert_close(same, opinion)

    def test_follows_permutations_of_the_sources(self, frame):
        gradients, variance, order = random(4, 9), random(4, 9, seed=1), [2, 0, 3, 1]
        one, opinion = fuse_gradients(gradients, variance, frame=frame)
        other, shuffled = fuse_gradients(gradients[order], variance[order], frame=frame)
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(shuffled.weights, opinion.weights[order])

    def test_one_source_is_handed_through(self, frame):
        gradients = random(1, 10)
        torch.testing.assert_close(fuse_gradients(gradients, random(1, 10, seed=1), frame=frame)[0], gradients[0])

    def test_a_missing_source_is_as_if_it_were_not_there(self, frame):
        gradients, variance = random(3, 10), random(3, 10, seed=1)
        variance[1] = 0  # what a missing source leaves behind must not reach the median
        with_gap, _ = fuse_gradients(gradients, variance, frame=frame, present=torch.tensor([True, False, True]))
        without, _ = fuse_gradients(gradients[[0, 2]], variance[[0, 2]], frame=frame)
        torch.testing.assert_close(with_gap, without)

    def test_mean_is_the_sum_over_the_number_of_sources(self, frame):
        gradients, variance = random(3, 10), random(3, 10, seed=1)
        total, _ = fuse_gradients(gradients, variance, frame=frame)
        mean, _ = fuse_gradients(gradients, variance, frame=frame, reduction="mean")
        torch.testing.assert_close(mean, total / 3)

    def test_non_finite_entries_are_left_out_of_their_dimension(self, frame):
        gradients, variance = random(3, 4), torch.full((3, 4), 0.1, dtype=F64)
        gradients[1, 2] = torch.nan
        gradients[:, 3] = torch.inf
        fused, _ = fuse_gradients(gradients, variance, frame=frame)
        if frame != "dimension":  # there a source that loses an entry is trusted less everywhere
            torch.testing.assert_close(fused[:2], gradients[:, :2].sum(0))
        assert fused[:3].isfinite().all()
        assert fused[3].isnan()

    def test_half_precision_in_half_precision_out(self, frame):
        fused, opinion = fuse_gradients(random(2, 5).bfloat16(), random(2, 5, seed=1).bfloat16(), frame=frame)
        assert fused.dtype == torch.bfloat16
        assert opinion.weights.dtype == torch.float32

    def test_batched_equals_looped(self, frame):
        gradients, variance = random(4, 3, 6), random(4, 3, 6, seed=1)
        whole, _ = fuse_gradients(gradients, variance, frame=frame)
        parts = torch.stack([fuse_gradients(g, v, frame=frame)[0] for g, v in zip(gradients, variance, strict=True)])
        torch.testing.assert_close(whole, parts)


class TestFuseLimits:
    def test_little_evidence_is_the_plain_sum_and_much_is_inverse_variance(self):
        gradients, variance = random(3, 10) - 0.5, 0.5 + random(3, 10, seed=1)
        little, _ = fuse_gradients(gradients, variance, kappa=1e-9)
        torch.testing.assert_close(little, gradients.sum(0), rtol=1e-6, atol=1e-7)
        much, _ = fuse_gradients(gradients, variance, kappa=1e9, cap=math.inf, reduction="mean")
        precision = 1 / variance
        torch.testing.assert_close(much, (precision * gradients).sum(0) / precision.sum(0), rtol=1e-6, atol=1e-7)

    def test_conservative_moves_less_where_uncertain(self):
        gradients = torch.ones(2, 3, dtype=F64)
        fused, opinion = fuse_gradients(gradients, random(2, 3), conservative=True, reduction="mean")
        torch.testing.assert_close(fused, 1 - opinion.uncertainty)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [({"frame": "class"}, "frame='class': choose"), ({"reduction": "max"}, "reduction='max': choose")],
    )
    def test_bad_settings(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            fuse_gradients(torch.ones(2, 3), torch.ones(2, 3), **arguments)

    def test_shapes_that_differ(self):
        with pytest.raises(ValueError, match=r"gradients \(2, 3\) and variance \(2, 4\)"):
            fuse_gradients(torch.ones(2, 3), torch.ones(2, 4))
