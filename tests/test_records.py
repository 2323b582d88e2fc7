"""What the log of a step says: what was applied, under names that are the same in every run."""

import copy
import json
import math
import pickle

import pytest
import torch
from torchjd.aggregation import UPGradWeighting

import balanced_grad as bg
from balanced_grad.integrations import log_values
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch

SEVERAL = {
    "MMPareto": lambda **options: bg.MMPareto(**options),
    "MinNorm": lambda **options: bg.MinNorm(groups="reach", **options),
    "Gramian": lambda **options: bg.Gramian(UPGradWeighting(), groups="tensor", **options),
}


def stepped(balancer, model, modalities=MODALITIES[:2], present=None):
    inputs, label = make_batch(modalities)
    inputs = {name: x for name, x in inputs.items() if present is None or name in present}
    balancer(model.losses(inputs, label)).backward()
    return balancer.last


@pytest.mark.parametrize("method", SEVERAL)
@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES])
class TestWeights:
    def test_the_mean_is_over_the_problems_of_a_loss(self, method, modalities):
        last = stepped(SEVERAL[method](), LateFusion(modalities, trunk=False), modalities)
        logged = last.to_dict()
        for name in last.names:
            own = [logged[f"weights/{label}"][name] for label in last.problems if name in logged[f"weights/{label}"]]
            assert logged["weights"][name] == pytest.approx(sum(own) / len(own))

    def test_a_problem_lists_the_losses_that_meet_there(self, method, modalities):
        last = stepped(SEVERAL[method](), LateFusion(modalities, trunk=False), modalities)
        logged = last.to_dict()
        assert len(last.reach) == len(last.problems)
        for label, losses in zip(last.problems, last.reach, strict=True):
            assert list(logged[f"weights/{label}"]) == [last.names[k] for k in losses]
            assert len(losses) == 2, "an encoder is reached by its own loss and the joint one"

    def test_a_loss_that_meets_no_other_has_its_plain_gradient(self, method, modalities):
        model = LateFusion(modalities, trunk=False)
        model.encoders["audio"].requires_grad_(False)
        logged = stepped(SEVERAL[method](), model, modalities).to_dict()
        assert logged["weights"]["audio"] == 1.0

    def test_nothing_meets(self, method, modalities):
        model = LateFusion(modalities, trunk=False)
        model.encoders.requires_grad_(False)
        last = stepped(SEVERAL[method](), model, modalities)
        assert last.problems == last.reach == ()
        assert set(last.to_dict()["weights"].values()) == {1.0}
        assert all(math.isfinite(value) for value in log_values(last).values())
        json.dumps(last.to_dict(), allow_nan=False)

    def test_the_logger_says_the_same_and_waits_for_nothing(self, method, modalities):
        last = stepped(SEVERAL[method](), LateFusion(modalities, trunk=False), modalities)
        with NoHostReads():
            values = log_values(last, prefix="")
        weights = {name: values[f"weight/{name}"].item() for name in last.names}
        assert weights == pytest.approx(last.to_dict()["weights"])


def test_the_factor_of_mmpareto_is_what_is_logged():
    w = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    balancer = bg.MMPareto(gamma=1.5)
    balancer({"joint": (w[0] + w[1]).sum(), "audio": w[0].sum(), "video": w[1].sum()}).backward()
    assert balancer.last.to_dict()["weights"] == {"joint": 1.5, "audio": 1.5, "video": 1.5}
    assert w[0].grad.tolist() == [3.0, 3.0]


def test_what_a_weight_of_a_problem_without_the_loss_is_does_not_matter():
    reach = ((0, 1), (0, 2))
    weights = torch.tensor([[2.0, 3.0, torch.nan], [4.0, torch.nan, 5.0]])
    step = bg.Step(("joint", "audio", "video"), torch.ones(3), weights, problems=("a", "v"), reach=reach)
    assert step.mean_weights().tolist() == [3.0, 3.0, 5.0]


def test_one_problem_has_one_weight_per_loss():
    last = stepped(bg.MinNorm(), LateFusion())
    assert torch.equal(last.mean_weights(), last.weights)
    assert last.reach == ((0, 1, 2),)
    assert bg.Step(("joint",), torch.ones(1)).mean_weights() is None


def test_a_gramian_that_is_not_finite_is_not_logged_as_agreement():
    w, balancer = torch.zeros(2, requires_grad=True), bg.MinNorm()
    balancer({"joint": w.sum() * torch.inf, "audio": w[0]}).backward()
    assert log_values(balancer.last)["balance/cosine"].isnan()


class TestLabels:
    def labels(self, balancer, model, **options):
        return stepped(balancer, model, **options).problems

    def test_are_alike_in_every_run_and_name_no_address(self):
        runs = [self.labels(bg.MMPareto(), LateFusion()) for _ in range(3)]
        assert runs[0] == runs[1] == runs[2]
        assert len(set(runs[0])) == 6
        assert {"(6, 5)#1", "(6, 5)#2", "(6,)#3", "(6, 6)#1"} < set(runs[0])

    def test_stay_with_their_tensors_when_modalities_are_missing(self):
        model, balancer = LateFusion(MODALITIES, trunk=True), bg.MMPareto()
        named = bg.MMPareto(params=model.named_parameters())
        seen = {}
        for present in (None, ("video", "text"), ("audio", "text"), ("text", "video"), None):
            options = {"modalities": MODALITIES, "present": present}
            for label, name in zip(
                self.labels(balancer, model, **options), self.labels(named, model, **options), strict=True
            ):
                assert seen.setdefault(label, name) == name

    def test_do_not_grow_with_tensors_that_are_new_in_each_step(self):
        balancer = bg.MinNorm(groups="tensor")
        for _ in range(4):
            w = torch.ones(2, requires_grad=True)
            balancer({"joint": w.sum(), "audio": w[0]}).backward()
            assert balancer.last.problems == ("(2,)#1",)
            del w

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
    def test_of_a_copy_with_its_model_are_the_same(self, copied):
        model, balancer = LateFusion(), bg.MMPareto()
        labels = self.labels(balancer, model)
        model.features, balancer.last = {}, None
        twin_model, twin = copied((model, balancer))
        assert self.labels(twin, twin_model) == labels

    def test_names_that_were_given_are_kept(self):
        model = LateFusion()
        assert "trunk.weight" in self.labels(bg.MMPareto(params=model.named_parameters()), model)
        assert "trunk.weight" in self.labels(bg.MMPareto(params=model), model)
        assert "params[0]" in self.labels(bg.MMPareto(params=list(model.parameters())), model)
