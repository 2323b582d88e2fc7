"""Rules from elsewhere, torchjd's among them."""

from typing import Any

import pytest
import torch
from torchjd import aggregation as rules
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
        counting: Any = fresh.weighting
        assert counting.calls == 1


def instance(name):
    """A torchjd class called with what it needs."""
    needed = {
        "CAGrad": {"c": 0.5},
        "Constant": {"weights": torch.ones(2)},
        "Krum": {"n_byzantine": 1},
        "FairGrad": {"alpha": 1.0},
        "TrimmedMean": {"trim_number": 0},
        "CRMOGM": {"weighting": UPGradWeighting()},
        "GradVac": {},
    }
    return getattr(rules, name)(**needed.get(name.removesuffix("Weighting"), {}))


WEIGHTINGS = {name for name in rules.__all__ if name.endswith("Weighting") and name != "Weighting"}
OF_A_JACOBIAN = {"ExcessMTLWeighting", "MoDoWeighting", "SDMGradWeighting"}
AGGREGATORS = (
    set(rules.__all__)
    - WEIGHTINGS
    - {
        "Aggregator",
        "NashMTL",  # needs a solver that is not installed here
        "GramianWeightedAggregator",
        "Weighting",
        "WeightedAggregator",
    }
)


class TestRulesThatTakeNoGramian:
    @pytest.mark.parametrize("name", sorted(OF_A_JACOBIAN))
    def test_weightings_of_a_jacobian(self, name):
        rule = getattr(rules, name)()
        for weighting in (rule, rules.CRMOGMWeighting(rule)):
            with pytest.raises(TypeError, match=f"weighting={name}.*needs the Jacobian"):
                bg.Gramian(weighting)

    @pytest.mark.parametrize("name", sorted(AGGREGATORS))
    def test_aggregators(self, name):
        with pytest.raises(TypeError, match=f"weighting={name}.*aggregates a Jacobian.*give .*Weighting"):
            bg.Gramian(instance(name))

    def test_the_weighting_inside_an_aggregator(self):
        with pytest.raises(TypeError, match="compute_gramian"):
            bg.Gramian(rules.UPGrad().weighting)

    def test_a_class(self):
        with pytest.raises(TypeError, match=r"is a class; write UPGradWeighting\(...\)"):
            bg.Gramian(UPGradWeighting)

    def test_a_rule_that_is_learnt_is_told_so(self):
        class Learnt(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weights = torch.nn.Parameter(torch.ones(2))

            def forward(self, gramian):
                return self.weights[: len(gramian)]

        w, balancer = torch.zeros(2, requires_grad=True), bg.Gramian(Learnt())
        with pytest.warns(bg.InactiveBalancerWarning, match="constants of the step"):
            balancer({"joint": w.sum(), "audio": w[0]}).backward()
        assert not balancer.last.weights.requires_grad

    @pytest.mark.parametrize("name", sorted(WEIGHTINGS - OF_A_JACOBIAN - {"KrumWeighting"}))
    def test_all_others_run(self, name):
        w, balancer = torch.zeros(2, requires_grad=True), bg.Gramian(instance(name))
        balancer({"audio": 2 * w[0] + w[1], "joint": w[1] - w[0]}).backward()
        assert w.grad.isfinite().all()


@pytest.mark.parametrize(
    "order", [("joint", "audio", "video"), ("audio", "joint", "video"), ("video", "audio", "joint")]
)
class TestTheJointLossLeads:
    def balanced(self, rule, order, scale=1.0):
        w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        losses = {"joint": w.sum(), "audio": scale * (2 * w[1] - w[0]), "video": w[2] - 2 * w[1]}
        balancer = bg.Gramian(rule)
        balancer({name: losses[name] for name in order}).backward()
        return balancer.last.to_dict()["weights"], w.grad

    def test_of_pcd_whatever_the_order_of_the_losses(self, order):
        weights, grad = self.balanced(rules.PCDWeighting(tau=0.3), order)
        want, want_grad = self.balanced(rules.PCDWeighting(tau=0.3), ("joint", "audio", "video"))
        assert weights == pytest.approx(want)
        torch.testing.assert_close(grad, want_grad)
        assert grad.norm().item() == pytest.approx(3**0.5), "as long as the joint gradient"

    def test_of_the_gramian_and_of_vectors_that_go_with_it(self, order):
        seen = []

        def rule(gramian):
            seen.append(gramian.diagonal() / gramian[0, 0])
            return torch.tensor([10.0, 20.0, 30.0][: len(gramian)])

        weights, _ = self.balanced(rule, order)
        others = [name for name in order if name != "joint"]
        assert weights == {"joint": 10.0, others[0]: 20.0, others[1]: 30.0}
        torch.testing.assert_close(seen[0] * 3, torch.tensor([3.0, 5.0, 5.0]).double())
        weights, _ = self.balanced(rule, order, scale=0.0)  # audio takes no part
        assert weights == {"joint": 10.0, "audio": 1.0, "video": 20.0}


class TestRulesWithAMemory:
    STATEFUL = ("PCDWeighting", "GradVacWeighting", "CRMOGMWeighting")

    def step(self, balancer, names):
        w = torch.zeros(3, requires_grad=True)
        losses = {"joint": w.sum(), "audio": w[1] - w[0], "video": w[2] - 2 * w[1]}
        torch.manual_seed(0)
        balancer({name: losses[name] for name in names}).backward()
        return balancer.last.weights

    @pytest.mark.parametrize("name", STATEFUL)
    def test_forget_when_other_losses_take_part(self, name):
        balancer = bg.Gramian(instance(name))
        self.step(balancer, ("joint", "audio"))
        with pytest.warns(bg.InactiveBalancerWarning, match=f"{name} keeps its memory by position"):
            weights = self.step(balancer, ("joint", "video"))
        torch.testing.assert_close(weights, self.step(bg.Gramian(instance(name)), ("joint", "video")))
        self.step(balancer, ("joint", "audio", "video"))  # said once

    @pytest.mark.parametrize("name", STATEFUL)
    def test_remember_otherwise(self, name):
        twin, balancer = instance(name), bg.Gramian(instance(name))
        for _ in range(2):
            weights = self.step(balancer, ("audio", "joint"))
            torch.manual_seed(0)
            order = torch.tensor([1, 0])
            gramian = balancer.last.gramian[order][:, order]
            want = twin(gramian / gramian.diagonal().mean())
        torch.testing.assert_close(weights[order], want.double())

    @pytest.mark.parametrize("name", STATEFUL)
    def test_have_no_several_problems(self, name):
        with pytest.raises(ValueError, match=f"{name} would remember them as one"):
            bg.Gramian(instance(name), groups="reach")
