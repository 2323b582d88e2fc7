"""What a method, rule or estimator of the user's own may return, and how the rest is refused."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.evidence import Moments, Variance
from balanced_grad.modulation._base import Modulation
from tests.conftest import LateFusion, make_batch

NAMES = ["joint", "audio", "video"]


def method(returned, *, gramian=False, **options):
    class Own(bg.Balancer):
        needs_gramian = gramian

        def weigh(self, problem):
            return returned(problem)

    return Own(**options)


def weights_in(balancer):
    model = LateFusion()
    balancer(model.losses(*make_batch())).backward()
    return balancer.last.weights, model


@pytest.mark.parametrize("gramian", [False, True])
class TestWeigh:
    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            (lambda problem: torch.ones(3), TypeError, "returned a tensor of shape .3,.; return bg.Weighting"),
            (lambda problem: {"joint": 1.0}, TypeError, r"returned a dict; return bg.Weighting\(weights\)"),
            (lambda problem: [1.0, 1.0, 1.0], TypeError, r"returned a list; return bg.Weighting\(weights\)"),
            (lambda problem: (torch.ones(3), None), TypeError, "returned a tuple"),
            (lambda problem: None, TypeError, r"returned None; return bg.Weighting\(weights\)"),
            (lambda problem: bg.Weighting([1.0, 1.0, 1.0]), TypeError, "returned a list, not a tensor"),
            (lambda problem: bg.Weighting(torch.ones(4)), ValueError, r"shape \(4,\), not \(3,\).*'joint', 'audio'"),
            (lambda problem: bg.Weighting(torch.ones(2)), ValueError, r"shape \(2,\), not \(3,\)"),
            (lambda problem: bg.Weighting(torch.ones(())), ValueError, r"shape \(\), not \(3,\)"),
            (lambda problem: bg.Weighting(torch.ones(3, 1)), ValueError, r"shape \(3, 1\), not \(3,\)"),
            (lambda problem: bg.Weighting(torch.ones(3) > 0), TypeError, "dtype torch.bool, not real numbers"),
            (lambda problem: bg.Weighting(torch.ones(3) + 0j), TypeError, "dtype torch.complex64, not real"),
            (
                lambda problem: bg.Weighting(torch.ones(3, device="meta")),
                ValueError,
                "on meta, but the losses are on cpu",
            ),
            (lambda problem: bg.Weighting(torch.ones(3), 2.0), TypeError, "the value of a Weighting is a 0-dim"),
            (lambda problem: bg.Weighting(torch.ones(3), torch.ones(3)), ValueError, "the value of a Weighting"),
        ],
    )
    def test_what_is_refused_by_name(self, gramian, returned, error, message):
        with pytest.raises(error, match=r"Own.weigh\(\) returned") as caught:
            weights_in(method(returned, gramian=gramian))
        caught.match(message)

    @pytest.mark.parametrize(
        "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8]
    )
    def test_every_real_dtype_serves(self, gramian, dtype):
        weights, _ = weights_in(method(lambda p: bg.Weighting(torch.tensor([1, 2, 3]).to(dtype)), gramian=gramian))
        assert weights.dtype == (torch.float64 if gramian else torch.float32)
        assert weights.tolist() == [1.0, 2.0, 3.0]

    def test_learnt_weights_are_constants_of_the_step_and_that_is_said_once(self, gramian):
        learnt = nn.Parameter(torch.ones(3))
        balancer = method(lambda problem: bg.Weighting(2 * learnt, learnt.sum()), gramian=gramian)
        with pytest.warns(bg.InactiveBalancerWarning, match=r"Own.weigh\(\).*constants of the step"):
            weights, model = weights_in(balancer)
        weights_in(balancer)  # and is silent
        assert not weights.requires_grad
        assert weights.grad_fn is None
        assert learnt.grad is None
        assert all(p.grad is not None for p in model.parameters())

    def test_choose_is_what_was_weighed_times_the_factors(self, gramian):
        balancer = method(lambda problem: bg.Weighting(torch.tensor([1, 2, 3])), gramian=gramian)
        balancer.factors = {"video": torch.tensor(0.5)}
        problem = bg.Problem(tuple(NAMES), torch.ones(3), torch.eye(3).double() if gramian else None)
        for chooser in (balancer, bg.HeldOut(balancer)):
            assert chooser.choose(problem).weights.tolist() == [1.0, 2.0, 1.5]
            assert chooser.choose(problem).objective(problem).item() == 4.5


@pytest.mark.parametrize(
    "look",
    [
        lambda problem: problem.gramian.diagonal(),
        lambda problem: 1 / problem.gramian[0],
        lambda problem: torch.linalg.norm(problem.gramian),
        lambda problem: bg.solvers.min_norm(problem.gramian).weights,
        lambda problem: torch.ones(len(problem.gramian)),
    ],
)
def test_a_gramian_that_was_not_asked_for(look):
    with pytest.raises(TypeError, match="needs_gramian = True"):
        weights_in(method(lambda problem: bg.Weighting(look(problem))))


def test_other_errors_in_weigh_stay_what_they_are():
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        weights_in(method(lambda problem: bg.Weighting(problem.weights)))


@pytest.mark.parametrize("gramian", [False, True])
def test_state_may_change_in_a_training_step_only(gramian):
    steps = []

    def weigh(problem):
        steps.append(torch.is_grad_enabled())
        return bg.Weighting(torch.ones_like(problem.losses))

    balancer = method(weigh, gramian=gramian)
    weights_in(balancer)
    assert steps == [True]
    with torch.no_grad():
        balancer(LateFusion().losses(*make_batch()))
    assert steps == ([True] if gramian else [True, False])


def test_one_row_of_weights_per_problem():
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(6, 3\)"):
        weights_in(method(lambda problem: bg.Weighting(torch.ones(3)), gramian=True, groups="tensor"))[0]


def test_a_learnt_parameter_trains_by_a_term_of_its_own():
    class Uncertainty(bg.Balancer):
        def __init__(self):
            super().__init__()
            self.log_variance = nn.Parameter(torch.zeros(2))

        def weigh(self, problem):
            return bg.Weighting(torch.exp(-self.log_variance.detach()))

        def term(self):
            return (torch.exp(-self.log_variance) * self.last.losses + self.log_variance).sum()

    w, balancer = torch.tensor([3.0, 0.5], requires_grad=True), Uncertainty()
    (balancer({"audio": w[0], "video": w[1]}) + balancer.term()).backward()
    assert w.grad.tolist() == [1.0, 1.0]
    assert balancer.log_variance.grad.tolist() == [-2.0, 0.5]


def test_the_repr_of_a_method_of_ones_own_shows_its_settings():
    assert repr(method(None, gramian=True, level="features")) == "Own(level='features')"
    assert repr(method(None, gramian=True, groups="reach")) == "Own(groups='reach')"
    assert repr(method(None)) == "Own()"


class TestModulate:
    @staticmethod
    def balancer(returned, hook=None):
        class Own(Modulation):
            def modulate(self, scores):
                return returned

            def hook(self, coefficient):
                return super().hook(coefficient) if hook is None else hook

        return Own({"audio": nn.Linear(2, 2), "video": nn.Linear(2, 2)})

    @staticmethod
    def step(balancer):
        losses = {m: balancer.modalities.parameters(m)[0].sum() for m in ("audio", "video")}
        balancer(losses, scores={"audio": 0.5, "video": 0.25}).backward()

    @pytest.mark.parametrize(
        ("returned", "error", "message"),
        [
            ([1.0, 1.0], TypeError, r"returned a list, not a tensor of shape \(2,\)"),
            (None, TypeError, "returned None, not a tensor"),
            (torch.ones(()), ValueError, r"returned shape \(\), not \(2,\)"),
            (torch.ones(3), ValueError, r"returned shape \(3,\), not \(2,\)"),
            (torch.ones(2, device="meta"), ValueError, "a tensor on meta"),
            ({"audio": 1.0}, TypeError, "returned a dict"),
        ],
    )
    def test_what_is_refused_by_name(self, returned, error, message):
        balancer = self.balancer(returned)
        with pytest.raises(error, match=r"Own.modulate\(\) returned") as caught:
            self.step(balancer)
        caught.match(message)
        assert balancer.last is None

    def test_integers_serve(self):
        balancer = self.balancer(torch.tensor([2, 3]))
        self.step(balancer)
        assert balancer.last.to_dict()["coefficients"] == {"audio": 2.0, "video": 3.0}

    def test_learnt_coefficients_are_constants(self):
        balancer = self.balancer(torch.ones(2, requires_grad=True) * 2)
        with pytest.warns(bg.InactiveBalancerWarning, match=r"Own.modulate\(\).*constants"):
            self.step(balancer)
        assert not any(k.requires_grad for k in balancer.last.coefficients.values())

    def test_a_hook_that_is_no_function(self):
        with pytest.raises(TypeError, match=r"Own.hook\(\) returned a tensor of shape \(2,\); return a function"):
            self.step(self.balancer(torch.ones(2), hook=torch.ones(2)))


@pytest.mark.parametrize("scales", [None, [1.0], torch.ones(2)])
def test_update_scales_are_a_mapping(scales):
    class Own(bg.Uniform):
        def update_scales(self):
            return scales

    w = nn.Parameter(torch.ones(2))
    balancer = Own()
    optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], 0.1), balancer)
    balancer({"joint": w.sum()}).backward()
    with pytest.raises(TypeError, match=r"Own.update_scales\(\) returned .*; return a mapping of modality"):
        optimizer.step()


@pytest.mark.parametrize("loss", [lambda logits, labels: logits.square(), lambda logits, labels: 1.0])
def test_agm_takes_one_number_as_the_loss_of_a_share(loss):
    w = torch.ones(4, 2, requires_grad=True)
    balancer = bg.AGM(("audio", "video"), loss=loss)
    with pytest.raises((TypeError, ValueError), match=r"AGM's loss= returned .*; reduce it"):
        balancer.logits(2 * w, lambda present: w, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ((torch.ones(4, 2),), TypeError, r"muted\(\('audio',\)\) returned a tuple; return the logits"),
        (None, TypeError, "returned None; return the logits"),
        (torch.ones(4, 3), ValueError, r"with only \['audio'\] have shape \(4, 3\)"),
        (torch.ones(4, 2, device="meta"), ValueError, "on meta and cpu"),
        (torch.ones(4, 2), bg.InactiveBalancerWarning, "without a graph"),
    ],
)
def test_agm_checks_the_muted_logits(returned, error, message):
    w = torch.ones(4, 2, requires_grad=True)
    with pytest.raises(error, match=message):  # warnings are errors here
        bg.AGM(("audio", "video")).logits(2 * w, lambda present: returned, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda g: g.square(), TypeError, r"Own.moments\(\) returned a tensor of shape.*; return evidence.Moments"),
        (lambda g: (g, g, {}), TypeError, "returned a tuple"),
        (lambda g: Moments(g, g.square(), None), TypeError, "returned None"),
        (lambda g: Moments(g, g.square()[0], {}), ValueError, "returned shape"),
        (lambda g: Moments(g, 1.0, {}), TypeError, "returned a float, not a tensor of shape"),
        (lambda g: Moments(g[:1], g.square(), {}), ValueError, "returned shape"),
        (lambda g: Moments(g, g.square(), {"seen": torch.ones(())}), ValueError, r"as state\['seen'\]"),
    ],
)
def test_an_estimator_of_ones_own(returned, error, message):
    class Own(Variance):
        def moments(self, gradients, calls, shapes, state, generator=None):
            return returned(gradients)

    model = LateFusion()
    with pytest.raises(error, match=message):
        bg.BOGC(model.trunk, Own())(model.losses(*make_batch())).backward()
    assert all(p.grad is None for p in model.parameters())
