"""Units, order, duplicates and range: what evidence must not depend on, and what must never become NaN."""

import itertools

import pytest
import torch

from balanced_grad.evidence import (
    Laplace,
    fisher_curvature,
    fuse_gradients,
    laplace_variance,
    modality_opinion,
    precision_evidence,
    reduced_dempster,
    sample_variance,
    softmax_curvature,
)
from balanced_grad.evidence._history import History, typical_variance
from balanced_grad.records import LinearCall

SCALES = [1e-40, 1e-20, 1e-12, 1e-6, 1e6, 1e12, 1e20]
FRAMES = ["modality", "dimension", "single"]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class TestVariance:
    @pytest.mark.parametrize("ratio", [1e-1, 1e-2, 1e-3, 1e-4])
    @pytest.mark.parametrize("positions", [1, 3])
    @pytest.mark.parametrize("varied", ["gradients", "inputs", "both"])
    def test_of_items_that_nearly_agree(self, ratio, positions, varied):
        def items(columns, seed, moves):
            level = normal(1, positions, columns, seed=seed).double()
            return level + ratio * moves * normal(256, positions, columns, seed=seed + 1).double()

        g = (items(4, 1, varied != "inputs") / 256).float()
        x = items(3, 5, varied != "gradients").float()
        each = torch.einsum("ntc,ntf->ncf", g.double(), x.double()) * 256
        torch.testing.assert_close(sample_variance(g, x).double(), each.var(0) / 256, rtol=1e-2, atol=0)

    @pytest.mark.parametrize("scale", [1e-18, 1e-12, 1e-6, 1e6, 1e12, 1e18])
    def test_scale(self, scale):
        g, x = normal(16, 2, 3), normal(16, 2, 4, seed=1)
        for function in (sample_variance, fisher_curvature):
            torch.testing.assert_close(function(g * scale, x / scale), function(g, x), rtol=1e-4, atol=0)
        torch.testing.assert_close(
            softmax_curvature(g[:, 0], x[:, 0] * scale) / scale / scale, softmax_curvature(g[:, 0], x[:, 0])
        )
        h = normal(5).abs()
        torch.testing.assert_close(laplace_variance(h * scale, 10, scale) / scale, laplace_variance(h, 10, 1.0))

    def test_order_and_duplicates_of_items(self):
        g, x, order = normal(8, 2, 3), normal(8, 2, 4, seed=1), torch.randperm(8)
        for function in (sample_variance, fisher_curvature):
            torch.testing.assert_close(function(g[order], x[order]), function(g, x))
        twice = g.repeat(2, 1, 1) / 2, x.repeat(2, 1, 1)
        torch.testing.assert_close(fisher_curvature(*twice), fisher_curvature(g, x))
        torch.testing.assert_close(sample_variance(*twice) * 15 / 7, sample_variance(g, x))


class TestLaplace:
    @pytest.mark.parametrize("options", [{}, {"num_data": 1000}, {"curvature": "softmax"}], ids=str)
    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e-3, 1e3, 1e12])
    def test_the_unit_of_the_inputs_is_a_common_factor(self, options, scale):
        """And that of the loss: both scale the curvature."""
        logits, x = normal(32, 1, 3), normal(32, 1, 4, seed=1)
        gradients = (logits.softmax(-1) - torch.eye(3)[torch.arange(32) % 3][:, None]) / 32
        shapes, row = [torch.Size([3, 4])], torch.zeros(1, 12)
        one = Laplace(**options).moments(row, [LinearCall(gradients, x, logits)], shapes, {}).variance
        two = Laplace(**options).moments(row, [LinearCall(gradients, x * scale, logits)], shapes, {}).variance
        torch.testing.assert_close(two.double() / scale / scale, one.double(), rtol=1e-4, atol=0)
        if not options.get("curvature"):
            two = Laplace(**options).moments(row, [LinearCall(gradients * scale, x, logits)], shapes, {}).variance
            torch.testing.assert_close(two.double() / scale / scale, one.double(), rtol=1e-4, atol=0)

    def test_is_h_over_n_by_default(self):
        g, x = normal(32, 1, 3) / 1e5, normal(32, 1, 4, seed=1)
        h = fisher_curvature(g, x).flatten()
        for size in (None, 1000):
            call = LinearCall(g, x, None)
            got = Laplace(num_data=size).moments(torch.zeros(1, 12), [call], [torch.Size([3, 4])], {}).variance[0]
            torch.testing.assert_close(got.float(), h / (size or 32), rtol=0.02, atol=0)


class TestPrecision:
    @pytest.mark.parametrize("scale", SCALES)
    def test_scale(self, scale):
        variance = normal(3, 50).square() + 1e-3
        want = precision_evidence(variance)
        for scaled in (variance.double() * scale, variance * scale):
            coarse = scaled.dtype is torch.float32 and scale < 1e-35  # float32 itself has few digits left there
            got = precision_evidence(scaled)
            torch.testing.assert_close(got.float(), want, rtol=0.2 if coarse else 1e-5, atol=0.02 if coarse else 1e-6)
        reference = torch.tensor(1 / scale, dtype=torch.float64)
        got = precision_evidence(variance.double() * scale, reference=reference)
        torch.testing.assert_close(got.float(), precision_evidence(variance, reference=torch.tensor(1.0)))

    def test_order_and_duplicates(self):
        variance, order = normal(3, 51).square() + 1e-3, torch.randperm(51)
        torch.testing.assert_close(precision_evidence(variance[:, order]), precision_evidence(variance)[:, order])
        thrice = precision_evidence(variance.repeat(1, 3))
        torch.testing.assert_close(thrice, precision_evidence(variance).repeat(1, 3))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_nothing_is_nan(self, dtype):
        info = torch.finfo(dtype)
        values = [0.0, info.smallest_normal / 8, info.tiny, 1.0, info.max, torch.inf, torch.nan]
        variance = torch.tensor(list(itertools.product(values, values)), dtype=dtype)
        rows = torch.ones_like(variance)
        for kappa, cap, eps in itertools.product((0.0, 1e-30, 1.0, 1e30, torch.inf), (1.0, torch.inf), (0.0, 1e-8)):
            assert precision_evidence(variance, kappa, cap=cap, eps=eps).isfinite().all()
            for frame, conservative in itertools.product(FRAMES, (False, True)):
                fused, opinion = fuse_gradients(
                    rows, variance, kappa=kappa, cap=cap, frame=frame, conservative=conservative
                )
                assert fused.isfinite().all()
                assert all(part.isfinite().all() for part in opinion)


class TestOpinions:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("rule", [modality_opinion, reduced_dempster])
    def test_of_any_evidence(self, rule, dtype):
        values = [0.0, 1.0, 6e4, torch.finfo(dtype).max, torch.inf]
        for evidence in itertools.product(values, repeat=3):
            given = torch.tensor(evidence, dtype=dtype)
            opinion = rule(given[:, None]) if rule is modality_opinion else rule(given[None])
            belief, uncertainty, weights = (part.flatten() for part in opinion)
            assert belief.dtype is torch.promote_types(dtype, torch.float32)
            assert all(part.isfinite().all() for part in opinion)
            assert abs(belief.sum() + uncertainty - 1) <= 1e-5
            assert abs(weights.sum() - 1) <= 1e-5
            if torch.isinf(given).any():
                torch.testing.assert_close(weights, given.isinf().to(weights) / given.isinf().sum())

    @pytest.mark.parametrize("rule", [modality_opinion, reduced_dempster])
    def test_order(self, rule):
        evidence, order = normal(4, 4).abs(), torch.randperm(4)
        got, want = rule(evidence[order]), rule(evidence)
        torch.testing.assert_close(got.weights, want.weights[order] if rule is modality_opinion else want.weights)
        torch.testing.assert_close(got.uncertainty, want.uncertainty)

    def test_single_frame_by_hand(self):
        """Belief e / (e + 1), uncertainty the product of what each leaves open."""
        variance = torch.tensor([[1.0, 1.0], [1.0, 3.0]])
        _, opinion = fuse_gradients(torch.ones(2, 2), variance, frame="single", reference=torch.tensor(1.0))
        torch.testing.assert_close(opinion.belief, torch.tensor([[0.5, 0.5], [0.5, 0.25]]), atol=1e-6, rtol=0)
        torch.testing.assert_close(opinion.uncertainty, torch.tensor([0.25, 0.375]), atol=1e-6, rtol=0)

    def test_dimension_frame_by_hand(self):
        """u = D / (D + Σ e), b = e / (D + Σ e)."""
        variance = torch.tensor([[1.0, 1.0], [1.0, 1 / 3]])
        _, opinion = fuse_gradients(torch.ones(2, 2), variance, frame="dimension", reference=torch.tensor(1.0))
        torch.testing.assert_close(opinion.uncertainty, torch.tensor([1 / 2, 1 / 3]), atol=1e-6, rtol=0)
        torch.testing.assert_close(opinion.belief, torch.tensor([[1 / 4, 1 / 4], [1 / 6, 1 / 2]]), atol=1e-6, rtol=0)


class TestFusion:
    @pytest.mark.parametrize("frame", FRAMES)
    @pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e30])
    def test_scale(self, frame, scale):
        g, variance = normal(3, 20), normal(3, 20, seed=1).square() + 1e-2
        want, _ = fuse_gradients(g, variance, frame=frame)
        got, _ = fuse_gradients(g * scale, variance.double() * scale * scale, frame=frame)
        torch.testing.assert_close(got / scale, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("frame", FRAMES)
    def test_a_source_twice_counts_twice(self, frame):
        g, variance = normal(1, 20), normal(1, 20, seed=1).square() + 1e-2
        got, _ = fuse_gradients(g.repeat(3, 1), variance.repeat(3, 1), frame=frame)
        torch.testing.assert_close(got, 3 * g[0])


class TestTypical:
    @pytest.mark.parametrize(
        "shape", [(512, 512), (1024, 1024), (768, 768), (256, 256), (64, 4096), (4096, 64), (1000, 777)]
    )
    @pytest.mark.parametrize("per_source", [False, True])
    def test_order_of_the_features_and_dead_ones(self, shape, per_source):
        """A weight's variance is near the product of one number per output and one per input."""
        outputs, inputs = shape
        variance = normal(2, outputs, 1, seed=1).exp() * normal(2, 1, inputs, seed=2).exp() ** 2
        variance[:, :, :: inputs // 4] = 0
        variance[:, :: outputs // 4] = 0
        full = torch.where(variance > 0, variance, torch.nan).flatten(1)
        want = full.nanmedian(1, keepdim=True).values if per_source else full.flatten().nanmedian()
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            rows, columns = torch.randperm(outputs, generator=generator), torch.randperm(inputs, generator=generator)
            for moved in (variance, variance[:, rows], variance[:, :, columns], variance[:, rows][:, :, columns]):
                got = typical_variance(moved.flatten(1), per_source=per_source)
                assert (got.log() - want.log()).abs().max() <= 0.25  # 2 %, were each entry independent


class TestHistory:
    def test_a_saved_state_is_a_copy_both_ways(self):
        history, row = History(), torch.ones(1, 3)
        history.put(["a"], {"variance": row.clone(), "weight": torch.ones(1)})
        saved = history.state()
        history.tensors["variance"].zero_()
        assert torch.equal(saved["tensors"]["variance"], row)
        fresh = History()
        fresh.load(saved)
        fresh.tensors["variance"].zero_()
        assert torch.equal(saved["tensors"]["variance"], row)

    def test_a_state_of_0_1_is_read(self):
        """Which kept a variance in float32, over a power of two."""
        old = {"variance": torch.tensor([[3.0, 5.0]]), "exponent": torch.tensor([[-200.0]]), "weight": torch.ones(1)}
        history = History()
        history.load({"names": ["a"], "tensors": old})
        assert history.state()["tensors"].keys() == {"variance", "weight"}
        assert history.tensors["variance"].tolist() == [[3 * 2.0**-200, 5 * 2.0**-200]]
