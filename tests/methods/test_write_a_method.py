"""Methods written from the page "Write a method" alone, on a model of several modalities."""

import copy

import pytest
import torch

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch


class CosineGate(bg.Balancer):
    """Leave a uni-modal loss out where its gradient goes against the joint one's."""

    needs = "gramian"

    def weigh(self, problem):
        if "joint" not in problem.names:
            return bg.Weighting(torch.ones_like(problem.gramian[..., 0]))
        joint = problem.gramian[..., problem.names.index("joint"), :]
        return bg.Weighting((joint >= 0).to(joint))


class DynamicWeightAverage(bg.Stateful, bg.Balancer):
    """Weights by how slowly each loss falls (Liu et al. 2019)."""

    def __init__(self, temperature=2.0, **common):
        super().__init__(**common)
        self.temperature, self.last_two = temperature, {}

    def weigh(self, problem):
        rates = []
        for name, loss in zip(problem.names, problem.losses.unbind(), strict=True):
            newer, older = self.last_two.get(name, (loss, loss))
            rates.append(newer.to(loss) / older.to(loss))
            if torch.is_grad_enabled():
                self.last_two[name] = (loss, newer)
        return bg.Weighting(len(rates) * (torch.stack(rates) / self.temperature).softmax(0))

    def state(self):
        return {"last_two": {name: list(pair) for name, pair in self.last_two.items()}}

    def load_state(self, state):
        self.last_two = {name: tuple(pair) for name, pair in state["last_two"].items()}

    def settings(self):
        return {"temperature": self.temperature} | super().settings()


class SlowDownTheFirst(bg.Modulation):
    """Every encoder as fast as the one that is furthest behind."""

    def modulate(self, scores):
        worst = torch.where(scores.isnan(), torch.inf, scores).min()
        return worst / scores


class SignDrop(bg.RowFusion):
    """Keep of each entry what has the sign of the sum (Chen et al. 2020, without the draw)."""

    def fuse(self, rows, problem):
        return torch.where(rows.sign() == rows.sum(0).sign(), rows, 0).sum(0)


def make(kind, model):
    return kind(model.encoders) if issubclass(kind, bg.Modulation) else kind()


KINDS = [CosineGate, DynamicWeightAverage, SlowDownTheFirst, SignDrop]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_it_trains_with_a_missing_modality_and_resumes_where_it_was(kind, optimizer):
    torch.manual_seed(1)

    def start():
        model = LateFusion(MODALITIES)
        balancer = make(kind, model)
        return model, bg.BalancedOptimizer(optimizer(model.parameters(), lr=0.05), balancer, modalities=model.encoders)

    def train(model, wrapped, steps):
        losses = []
        for step in steps:
            inputs, label = make_batch(MODALITIES, seed=0)
            if step == 3:
                del inputs["text"]
            wrapped.zero_grad()
            each = model.losses(inputs, label)
            wrapped.balancer(each).backward()
            wrapped.step()
            losses.append(sum(each.values()).item())
        return losses

    model, wrapped = start()
    history = train(model, wrapped, range(6))
    assert history[-1] < history[0]
    saved = copy.deepcopy((model.state_dict(), wrapped.state_dict()))
    resumed, wrapped_again = start()
    resumed.load_state_dict(saved[0])
    wrapped_again.load_state_dict(saved[1])
    assert train(model, wrapped, range(6, 9)) == train(resumed, wrapped_again, range(6, 9))


@pytest.mark.parametrize("options", [{"groups": "reach"}, {"groups": "tensor"}, {"level": "features"}])
def test_a_gramian_method_with_other_problems(options):
    model = LateFusion()
    balancer = CosineGate(**options)
    losses = model.losses(*make_batch())
    features = {"features": model.features} if "level" in options else {}
    balancer(losses, **features).backward()
    shape = (3,) if "level" in options else (len(balancer.last.problems), 3)
    assert balancer.last.weights.shape == shape


def test_settings_show():
    model = LateFusion()
    assert repr(CosineGate(groups="reach")) == "CosineGate(groups='reach')"
    assert (
        repr(DynamicWeightAverage(3.0, record_gramian=True))
        == "DynamicWeightAverage(temperature=3.0, record_gramian=True)"
    )
    assert "ModalityGroups(audio" in repr(SlowDownTheFirst(model.encoders))


class TestTheSpellingOfTheFirstRelease:
    def test_needs_gramian(self):
        class Old(bg.Balancer):
            needs_gramian = True

            def weigh(self, problem):
                return bg.Weighting(torch.ones_like(problem.gramian[0]))

        class Older(Old):
            pass

        for kind in (Old, Older):
            balancer = kind()
            balancer(LateFusion().losses(*make_batch())).backward()
            assert balancer.last.gramian is not None
            assert (balancer.needs, balancer.needs_gramian) == ("gramian", True)
        assert bg.HeldOut(Old()).needs_gramian
        assert not bg.MIMO().needs_gramian

    def test_needs_losses(self):
        class Fixed(bg.Balancer):
            needs_losses = False

            def weigh(self, problem):
                return bg.Weighting(torch.ones_like(problem.losses))

        assert Fixed().needs == bg.Uniform().needs == "nothing"


def test_needs_that_nothing_answers():
    class Misspelt(CosineGate):
        needs = "gram"

    class Rows(bg.Balancer):
        needs = "rows"

        def weigh(self, problem):
            return bg.Weighting(torch.ones_like(problem.losses))

    with pytest.raises(ValueError, match=r"Misspelt.needs='gram': choose one of .*'gramian'"):
        Misspelt()
    with pytest.raises(TypeError, match=r"Rows needs rows: derive it from bg.RowFusion, and write fuse\(\)"):
        Rows()(LateFusion().losses(*make_batch()))
