"""Rules from elsewhere, torchjd's among them."""

import pytest
import torch
from torchjd.aggregation import AlignedMTLWeighting, CAGradWeighting, PCGradWeighting, UPGradWeighting

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch


class TestForeignWeightings:
    @pytest.mark.parametrize(
        "weighting", [UPGradWeighting(), PCGradWeighting(), AlignedMTLWeighting(), CAGradWeighting(c=0.5)], ids=str
    )
    def test_torchjd_weightings(self, weighting):
        model, balancer = LateFusion(), bg.Gramian(weighting)
        torch.manual_seed(0)
        balancer(model.losses(*make_batch())).backward()
        gramian = balancer.last.gramian
        torch.manual_seed(0)
        want = weighting(gramian / gramian.diagonal().mean())
        torch.testing.assert_close(balancer.last.weights, want.to(torch.float64), rtol=1e-4, atol=1e-6)

    def test_small_gradients_are_balanced_as_large_ones_are(self):
        """torchjd's UPGrad answers gradients below its absolute tolerance with the plain mean."""
        weights = []
        for scale in (1.0, 1e-6):
            w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
            balancer = bg.Gramian(UPGradWeighting())
            balancer({"joint": scale * (2 * w[0] + w[1]), "audio": scale * (w[1] - 3 * w[0])}).backward()
            weights.append(balancer.last.weights)
        torch.testing.assert_close(weights[0], weights[1])
        raw = bg.Gramian(UPGradWeighting(), normalize=False)
        w = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        raw({"joint": 1e-6 * (2 * w[0] + w[1]), "audio": 1e-6 * (w[1] - 3 * w[0])}).backward()
        assert (raw.last.weights - weights[0]).abs().max() > 0.1

    def test_a_zero_row_never_reaches_the_rule(self):
        seen = []

        def rule(gramian):
            seen.append(gramian.shape)
            return torch.full((len(gramian),), 0.25)

        w = torch.zeros(2, requires_grad=True)
        balancer = bg.Gramian(rule)
        balancer({"joint": w.sum(), "audio": 2 * w[0], "video": (0 * w).sum()}).backward()
        assert seen == [(2, 2)]
        assert balancer.last.weights.tolist() == [0.25, 0.25, 1.0]

    def test_non_finite_gradients_do_not_call_the_rule(self):
        def rule(gramian):
            raise AssertionError("called")

        w = torch.zeros(2, requires_grad=True)
        bg.Gramian(rule)({"joint": w.sum() * torch.inf, "audio": w[0]}).backward()
        assert not w.grad.isfinite().any()

    @pytest.mark.parametrize(
        ("rule", "error", "message"),
        [
            (3, TypeError, "weighting=3 is not callable"),
            (lambda gramian: [1.0, 1.0], TypeError, "returned a list"),
            (lambda gramian: torch.ones(3), ValueError, r"returned shape \(3,\), not \(2,\)"),
        ],
    )
    def test_bad_rules(self, rule, error, message):
        w = torch.zeros(2, requires_grad=True)
        with pytest.raises(error, match=message):
            bg.Gramian(rule)({"joint": w.sum(), "audio": w[0]}).backward()
        assert w.grad is None

    def test_state_of_a_module_is_in_the_state_dict(self):
        class Counting(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("calls", torch.zeros(()))

            def forward(self, gramian):
                self.calls += 1
                return torch.ones(len(gramian))

        w, balancer = torch.zeros(2, requires_grad=True), bg.Gramian(Counting())
        balancer({"joint": w.sum(), "audio": w[0]}).backward()
        fresh = bg.Gramian(Counting())
        fresh.load_state_dict(balancer.state_dict())
        assert fresh.weighting.calls == 1
