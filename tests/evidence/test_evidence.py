"""The specification's oracles, Dempster's rule by brute force, and the limits."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balanced_grad.evidence import (
    laplace_variance,
    modality_opinion,
    precision_evidence,
    reduced_dempster,
    softmax_curvature,
)

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def random(*shape, seed=0):
    return torch.rand(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def masses_by_brute_force(sources):
    """Dempster's rule over sets: ``[{frozenset: mass}]`` to normalised masses."""
    combined = sources[0]
    for source in sources[1:]:
        product = {}
        for (a, mass_a), (b, mass_b) in itertools.product(combined.items(), source.items()):
            if a & b:
                product[a & b] = product.get(a & b, 0.0) + mass_a * mass_b
        total = sum(product.values())
        combined = {subset: mass / total for subset, mass in product.items()}
    return combined


class TestModalityOpinion:
    @pytest.mark.parametrize(
        ("evidence", "belief", "uncertainty", "weights"),
        [
            ((3, 1), (1 / 2, 1 / 6), 1 / 3, (2 / 3, 1 / 3)),
            ((4, 1, 0), (4 / 8, 1 / 8, 0), 3 / 8, (5 / 8, 2 / 8, 1 / 8)),
            ((7,), (7 / 8,), 1 / 8, (1,)),
            ((0, 0), (0, 0), 1, (1 / 2, 1 / 2)),
        ],
    )
    def test_oracles(self, evidence, belief, uncertainty, weights):
        opinion = modality_opinion(tensor(*evidence)[:, None])
        assert opinion.belief[:, 0].tolist() == pytest.approx(belief)
        assert opinion.uncertainty.item() == pytest.approx(uncertainty)
        assert opinion.weights[:, 0].tolist() == pytest.approx(weights)

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_is_dempsters_rule_in_any_order(self, count):
        evidence = 10 * random(count, 1, seed=count)
        frame = frozenset(range(count))
        for order in itertools.islice(itertools.permutations(range(count)), 6):
            sources = []
            for i in order:
                e = evidence[i].item()
                sources.append({frozenset([i]): e / (e + count), frame: count / (e + count)})
            masses = masses_by_brute_force(sources)
            opinion = modality_opinion(evidence)
            for i in range(count):
                assert opinion.belief[i].item() == pytest.approx(masses[frozenset([i])], abs=1e-12)
            assert opinion.uncertainty.item() == pytest.approx(masses[frame], abs=1e-12)

    def test_is_the_reduced_rule_on_sources_that_speak_for_themselves(self):
        evidence = 5 * random(4, 6)
        closed = modality_opinion(evidence)
        general = reduced_dempster(torch.diag_embed(evidence.T))  # (D, S, K)
        torch.testing.assert_close(general.belief.T, closed.belief)
        torch.testing.assert_close(general.uncertainty, closed.uncertainty)
        torch.testing.assert_close(general.weights.T, closed.weights)

    def test_an_absent_source_is_as_if_it_were_not_there(self):
        evidence = random(3, 5)
        with_gap = modality_opinion(evidence, present=torch.tensor([True, False, True])[:, None])
        without = modality_opinion(evidence[[0, 2]])
        torch.testing.assert_close(with_gap.weights[[0, 2]], without.weights)
        torch.testing.assert_close(with_gap.uncertainty, without.uncertainty)
        assert with_gap.weights[1].abs().max() == 0
        nobody = modality_opinion(evidence, present=torch.zeros(3, 1, dtype=torch.bool))
        assert nobody.weights.abs().max() == 0
        assert (nobody.uncertainty == 1).all()

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=6), st.randoms(use_true_random=False))
    @settings(deadline=None, max_examples=60)
    def test_masses_sum_to_one_and_follow_permutations(self, values, shuffler):
        order = list(range(len(values)))
        shuffler.shuffle(order)
        opinion, shuffled = modality_opinion(tensor(*values)[:, None]), modality_opinion(tensor(*values)[order, None])
        assert (opinion.belief.sum() + opinion.uncertainty).item() == pytest.approx(1.0)
        assert opinion.weights.sum().item() == pytest.approx(1.0)
        torch.testing.assert_close(shuffled.weights, opinion.weights[order])


def pairwise_rule(first, second):
    """The published rule for two sources of K evidences, as it is written."""
    K = len(first)
    (b1, u1), (b2, u2) = ((e / (e.sum() + K), K / (e.sum() + K)) for e in (first, second))
    conflict = torch.outer(b1, b2).sum() - torch.dot(b1, b2)
    b = (b1 * b2 + b1 * u2 + b2 * u1) / (1 - conflict)
    u = u1 * u2 / (1 - conflict)
    return b * K / u, b, u


class TestReducedDempster:
    def test_oracle(self):
        opinion = reduced_dempster(tensor([3, 1], [1, 0]))
        assert opinion.belief.tolist() == pytest.approx([0.6471, 0.1176], abs=1e-4)
        assert opinion.uncertainty.item() == pytest.approx(0.2353, abs=1e-4)

    @pytest.mark.parametrize("frame", [1, 2, 6, 50, 1000])
    @pytest.mark.parametrize("sources", [2, 3, 5])
    def test_equals_the_pairwise_rule(self, frame, sources):
        evidence = 20 * random(sources, frame, seed=frame + sources)
        fused = evidence[0]
        for source in evidence[1:]:
            fused, belief, uncertainty = pairwise_rule(fused, source)
        opinion = reduced_dempster(evidence)
        torch.testing.assert_close(opinion.belief, belief, rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(opinion.uncertainty, uncertainty, rtol=1e-11, atol=1e-13)

    def test_no_evidence_is_neutral_and_order_does_not_matter(self):
        evidence = random(4, 7)
        padded = torch.cat([evidence.flip(0), torch.zeros(2, 7, dtype=F64)])
        torch.testing.assert_close(reduced_dempster(padded), reduced_dempster(evidence))

    def test_many_strong_sources_do_not_overflow(self):
        opinion = reduced_dempster(torch.full((400, 2), 1e4) * torch.tensor([1.0, 0.9]))
        assert opinion.belief[0].item() == pytest.approx(1.0)
        assert all(part.isfinite().all() for part in opinion)

    def test_is_differentiable(self):
        evidence = (5 * random(3, 4)).requires_grad_()
        assert torch.autograd.gradcheck(lambda e: tuple(reduced_dempster(e)), evidence)


class TestPrecisionEvidence:
    def test_is_a_pure_number(self):
        variance = random(3, 100)
        torch.testing.assert_close(precision_evidence(1e-12 * variance), precision_evidence(variance))

    def test_a_typical_precision_counts_kappa(self):
        evidence = precision_evidence(random(3, 101), kappa=2.5)
        assert evidence.median().item() == pytest.approx(2.5, rel=1e-6)

    def test_unknown_entries_give_none_and_leave_the_median_alone(self):
        variance = random(2, 50)
        broken = torch.cat([variance, torch.tensor([[0.0, torch.nan, torch.inf] * 17], dtype=F64)[:, :50]])
        evidence = precision_evidence(broken)
        assert evidence[2].abs().max() == 0
        torch.testing.assert_close(evidence[:2], precision_evidence(variance))
        assert precision_evidence(torch.zeros(2, 3)).abs().max() == 0

    def test_cap_and_half_precision(self):
        variance = torch.tensor([[1e-7, 1.0, 1.0]], dtype=torch.float16)
        evidence = precision_evidence(variance)
        assert evidence.dtype == torch.float32
        assert evidence[0, 0] == 1e4

    def test_a_running_reference_replaces_the_median(self):
        variance = random(3, 101)
        typical = 1 / variance.median()
        torch.testing.assert_close(
            precision_evidence(variance, reference=typical), precision_evidence(variance), rtol=1e-6, atol=0
        )
        torch.testing.assert_close(
            precision_evidence(variance, reference=2 * typical),
            precision_evidence(variance, kappa=0.5),
            rtol=1e-6,
            atol=0,
        )

    @pytest.mark.parametrize("arguments", [{"kappa": -1.0}, {"cap": math.nan}, {"eps": -1e-9}])
    def test_bad_settings(self, arguments):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"{name}="):
            precision_evidence(torch.ones(1, 1), **arguments)


class TestCurvature:
    def test_equals_the_diagonal_of_autograds_hessian(self):
        def logits_of(w):
            return x @ w.T

        x, w, y = random(7, 3) - 0.5, random(4, 3, seed=1) - 0.5, torch.tensor([0, 1, 2, 3, 0, 1, 2])
        hessian = torch.autograd.functional.hessian(
            lambda w: torch.nn.functional.cross_entropy(logits_of(w), y), w
        ).reshape(12, 12)
        torch.testing.assert_close(softmax_curvature(logits_of(w), x).flatten(), hessian.diagonal())

    def test_laplace_oracle_and_its_evidence(self):
        variance = laplace_variance(tensor(2.0), num_data=100, prior_precision=1.0)
        assert variance.item() == pytest.approx(4 / 201)
        assert (1 / variance).item() == pytest.approx(50.25)

    def test_laplace_variance_is_that_of_sampled_gradients(self):
        """A quadratic loss, where linearising is exact: g = h (θ - c) with θ drawn from the posterior."""
        h, size, delta = tensor(0.3, 2.0, 40.0), 50, 2.0
        generator = torch.Generator().manual_seed(0)
        theta = torch.randn(200_000, 3, dtype=F64, generator=generator) / (size * h + delta).sqrt()
        torch.testing.assert_close((h * theta).var(0), laplace_variance(h, size, delta), rtol=2e-2, atol=0)

    def test_dead_and_negative_curvature_give_none(self):
        assert laplace_variance(tensor(0.0, -3.0), 10).tolist() == [0.0, 0.0]

    @pytest.mark.parametrize(("arguments", "name"), [((0,), "num_data"), ((10, 0.0), "prior_precision")])
    def test_bad_settings(self, arguments, name):
        with pytest.raises(ValueError, match=f"{name}="):
            laplace_variance(torch.ones(1), *arguments)

    def test_shapes_that_differ(self):
        with pytest.raises(ValueError, match="must agree"):
            softmax_curvature(torch.zeros(3, 2), torch.zeros(4, 5))
