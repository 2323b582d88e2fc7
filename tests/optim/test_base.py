"""What the base optimizer alone can do, what it cannot have, and a balancer that nobody calls."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

import balanced_grad as bg
from balanced_grad.optim import BalancedOptimizer, is_scale_invariant
from balanced_grad.optim._scale_invariance import averaging

STEPS = 12


class AdamWScheduleFree(torch.optim.SGD):
    """As the ones of that name: another sequence of weights, and a mode to evaluate it in."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        self.train_mode = False
        self.warmup = 0

    def train(self):
        self.train_mode = True

    def eval(self):
        self.train_mode = False

    def step(self, closure=None):
        if not self.train_mode:
            raise RuntimeError("Optimizer was not in train mode when step is called")
        return super().step(closure)


class Scaling(bg.MIMO):
    def update_scales(self):
        return {"audio": torch.tensor(0.5)}


def parameter():
    return nn.Parameter(torch.ones(3))


class TestAttributes:
    def wrapped(self, balancer=None):
        return BalancedOptimizer(AdamWScheduleFree([parameter()]), balancer or bg.MIMO())

    def test_methods_and_values_of_the_base(self):
        optimizer = self.wrapped()
        optimizer.train()
        assert optimizer.base.train_mode
        assert optimizer.train_mode
        optimizer.eval()
        assert not optimizer.train_mode
        assert hasattr(optimizer, "train")
        assert not hasattr(BalancedOptimizer(torch.optim.SGD([parameter()]), bg.MIMO()), "train")

    def test_setting_goes_where_the_value_is(self):
        optimizer = self.wrapped()
        optimizer.warmup = 3
        assert optimizer.base.warmup == 3
        optimizer.mine = 1
        assert not hasattr(optimizer.base, "mine")
        optimizer.step = step = lambda closure=None: None  # as schedulers and trainers do
        assert optimizer.step is step
        assert "step" not in vars(optimizer.base)

    def test_a_missing_one_is_named(self):
        with pytest.raises(AttributeError, match="'AdamWScheduleFree' object has no attribute 'nothing'"):
            _ = self.wrapped().nothing

    def test_private_ones_are_not_handed_on(self):
        """GradScaler would leave the unscaling to the base optimizer, of which the wrapper takes the step."""
        base = torch.optim.AdamW([parameter()], fused=True)
        assert base._step_supports_amp_scaling
        assert not hasattr(BalancedOptimizer(base, bg.MIMO()), "_step_supports_amp_scaling")

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_in_copies(self, copied):
        optimizer = copied(self.wrapped())
        optimizer.train()
        assert optimizer.base.train_mode

    def test_before_there_is_a_base(self):
        empty = BalancedOptimizer.__new__(BalancedOptimizer)
        with pytest.raises(AttributeError, match="has no attribute 'anything'"):
            _ = empty.anything

    def test_in_accelerate_and_the_hugging_face_trainer(self):
        optimizer_module = pytest.importorskip("accelerate.optimizer")
        prepared = optimizer_module.AcceleratedOptimizer.__new__(optimizer_module.AcceleratedOptimizer)
        prepared.optimizer = self.wrapped()
        prepared.train()
        assert prepared.optimizer.train_mode


class Lookahead(Optimizer):
    def __init__(self, inner):
        self._base_optimizer = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


NAMES = {
    "SGDScheduleFree": True,
    "RAdamScheduleFreeClosure": True,
    "Schedule_Free": True,
    "LookaheadAdam": True,
    "SWA": True,
    "EMAOptimizer": True,
    "AdamEMA": True,
    "PolyakSGD": True,
    "ModelAveraging": True,
    "SWATS": False,
    "AdEMAMix": False,
    "SimplifiedAdEMAMix": False,
    "ASGD": False,
    "Schema": False,
    "AdamW": False,
}


@pytest.mark.parametrize("name", NAMES)
def test_averaging_optimizers_are_known_by_name(name):
    kind = type(name, (torch.optim.SGD,), {})
    assert (averaging(kind([parameter()])) == name) == NAMES[name]


@pytest.mark.parametrize("attribute", ["base", "optimizer", "base_optimizer", "_base_optimizer", "_optimizer", "optim"])
def test_wrappers_are_looked_through(attribute):
    class Around(Optimizer):
        def __init__(self, inner):
            setattr(self, attribute, inner)

    assert averaging(Around(AdamWScheduleFree([parameter()]))) == "AdamWScheduleFree"
    assert is_scale_invariant(Around(torch.optim.Adam([parameter()])))
    assert not is_scale_invariant(Around(torch.optim.SGD([parameter()])))


@pytest.mark.parametrize("around", [lambda base: base, Lookahead])
@pytest.mark.parametrize("closure", [False, True])
def test_factors_on_averaged_weights_are_refused_before_anything_moves(around, closure):
    p = parameter()
    inner = torch.optim.SGD([p], lr=0.1) if around is Lookahead else AdamWScheduleFree([p])
    optimizer = BalancedOptimizer(around(inner), Scaling(), modalities={"audio": p})
    if around is not Lookahead:
        optimizer.train()

    def loss():
        total = p.sum()
        total.backward()
        return total

    if not closure:
        loss()
    with pytest.raises(
        RuntimeError, match=r"(AdamWScheduleFree|Lookahead) keeps averaged .* Scaling .*target='gradient'"
    ):
        optimizer.step(loss if closure else None)
    assert torch.equal(p, torch.ones(3))


def test_without_factors_they_run():
    p = parameter()
    optimizer = BalancedOptimizer(AdamWScheduleFree([p]), bg.MIMO(), modalities={"audio": p})
    optimizer.train()
    optimizer.balancer({"joint": p.sum(), "audio": p[0]}).backward()
    optimizer.step()
    assert not torch.equal(p, torch.ones(3))


class TestIdle:
    def steps(self, optimizer, p, count=STEPS, called=False):
        for _ in range(count):
            loss = p.square().sum()
            (optimizer.balancer({"joint": loss, "audio": p[0]}) if called else loss).backward()
            optimizer.step()
            optimizer.zero_grad()

    @pytest.mark.parametrize("balancer", [bg.MIMO, bg.MinNorm, bg.Uniform])
    @pytest.mark.parametrize("before", [0, 3])
    def test_is_said_once(self, balancer, before):
        p = parameter()
        optimizer = BalancedOptimizer(torch.optim.SGD([p], lr=0.01), balancer())
        self.steps(optimizer, p, before, called=True)
        with pytest.warns(bg.InactiveBalancerWarning, match="the balancer has not been called in 10 steps") as said:
            self.steps(optimizer, p, 3 * STEPS)
        assert len(said) == 1
        assert said[0].filename == __file__

    def test_of_a_guard(self):
        p = parameter()
        guard = bg.HeldOut(bg.MIMO(), held_out=lambda: {"joint": p.square().sum(), "audio": p[0]})
        optimizer = BalancedOptimizer(torch.optim.SGD([p], lr=0.01), guard)
        self.steps(optimizer, p, called=True)
        with pytest.warns(bg.InactiveBalancerWarning, match="has not been called in 10 steps") as said:
            self.steps(optimizer, p, 3 * STEPS)
        assert len(said) == 1

    def test_not_before_ten_steps(self):
        """A checkpoint of torch.distributed makes the state by a step of its own; others take turns."""
        p = parameter()
        optimizer = BalancedOptimizer(torch.optim.SGD([p], lr=0.01), bg.MIMO())
        for _ in range(4):
            self.steps(optimizer, p, 9)
            self.steps(optimizer, p, 1, called=True)

    def test_not_with_closures(self):
        p = parameter()
        optimizer = BalancedOptimizer(torch.optim.LBFGS([p], lr=0.1), bg.MIMO())

        def closure():
            optimizer.zero_grad()
            total = optimizer.balancer({"joint": p.square().sum(), "audio": p[0].square()})
            total.backward()
            return total

        for _ in range(STEPS):
            optimizer.step(closure)

    def test_not_under_a_scaler_that_skips(self):
        p = parameter()
        optimizer = BalancedOptimizer(torch.optim.SGD([p], lr=0.01), bg.MIMO())
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(3 * STEPS):
            loss = optimizer.balancer({"joint": p.square().sum(), "audio": p[0].square()})
            scaler.scale(loss * torch.inf).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    def test_not_where_factors_act(self):
        p = parameter()
        self.steps(BalancedOptimizer(torch.optim.SGD([p], lr=0.01), Scaling(), modalities={"audio": p}), p)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_in_copies(self, copied):
        p = parameter()
        optimizer = BalancedOptimizer(torch.optim.SGD([p], lr=0.01), bg.MIMO())
        self.steps(optimizer, p, 1, called=True)
        other = copied(optimizer)
        with pytest.warns(bg.InactiveBalancerWarning, match="has not been called"):
            self.steps(other, other.param_groups[0]["params"][0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.steps(optimizer, p, STEPS, called=True)


def test_a_state_loaded_in_inference_mode_trains():
    p = parameter()
    optimizer, resumed = (BalancedOptimizer(torch.optim.SGD([p], lr=0.01), bg.MIMO(ema=0.5)) for _ in range(2))
    for each in (optimizer, resumed):
        each.balancer({"joint": p.sum(), "audio": p[0]}).backward()
        each.step()
    saved = optimizer.state_dict()
    with torch.inference_mode():
        resumed.load_state_dict(saved)
    resumed.balancer({"joint": p.sum(), "audio": p[0]}).backward()
    resumed.step()
