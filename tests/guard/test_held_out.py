"""The guard around a balancer: when it looks, what it damps, and that it is a balancer like any other."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.conftest import LateFusion, NoHostReads, make_batch


def falling(step, last=0.0):
    return torch.tensor(last + (2 - last) * 0.8**step)


def trained(guard, w, steps, held_out=lambda step: {"joint": 0.0, "audio": 0.0, "video": 2.5}):
    """Steps in which every training loss falls, and held-out ones do as they are told to."""
    for step in range(steps):
        scale = falling(step)
        losses = {"joint": w.sum(), "audio": w[0], "video": w[1]}
        guard({name: loss - loss.detach() + scale for name, loss in losses.items()}).backward()
        if guard.due:
            last = held_out(step)
            guard.observe({name: falling(step, value) for name, value in last.items()})
    return guard


def test_the_modality_that_memorises_loses_its_weight():
    w = nn.Parameter(torch.ones(2))
    guard = trained(bg.HeldOut(bg.Uniform(), every=1, warm_up=3), w, 40)
    assert {name: round(f, 3) for name, f in guard.last.to_dict()["factors"].items()} == {"audio": 1.0, "video": 0.0}
    w.grad.zero_()
    guard({"joint": w.sum(), "audio": w[0], "video": w[1]}).backward()
    assert w.grad.tolist() == [2.0, 1.0]


def test_a_floor_and_the_way_back():
    w = nn.Parameter(torch.ones(2))
    guard = trained(bg.HeldOut(bg.Uniform(), every=1, warm_up=3, floor=0.25), w, 40)
    assert guard.factors["video"] == 0.25
    trained(guard, w, 60, lambda step: {"joint": 0.0, "audio": 0.0, "video": 0.0})
    assert guard.factors["video"] > 0.9


@pytest.mark.parametrize("every", [1, 3, 10])
def test_checks_are_due_after_the_first_step_and_then_every_so_many(every):
    w, seen = nn.Parameter(torch.ones(1)), []
    guard = bg.HeldOut(bg.Uniform(), lambda: {"audio": w.sum()}, every=every)
    assert not guard.due
    for step in range(1, 25):
        guard({"audio": w.sum()}).backward()
        if guard.check():
            seen.append(step)
    assert seen == list(range(1, 25, every))


def test_a_balanced_optimizer_checks_by_itself_after_its_step():
    w, seen = nn.Parameter(torch.ones(1)), []

    def held_out():
        assert not torch.is_grad_enabled()
        seen.append(w.item())
        return {"audio": w.sum()}

    optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.1), bg.HeldOut(bg.Uniform(), held_out, every=2))
    for _ in range(5):
        optimizer.balancer({"audio": w.sum()}).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert seen == pytest.approx([0.9, 0.7, 0.5])


def test_evaluation_does_not_count():
    w = nn.Parameter(torch.ones(1))
    guard = bg.HeldOut(bg.Uniform(), every=1)
    with torch.no_grad():
        assert guard({"audio": w.sum()}) == 1
    guard.eval()
    guard({"audio": w.sum()})
    assert not guard.due
    with pytest.raises(RuntimeError, match="before the first training step"):
        guard.observe({"audio": w.sum()})


def test_training_losses_that_are_missing_or_not_finite_are_left_out_of_the_mean():
    w = nn.Parameter(torch.ones(1))
    guard = bg.HeldOut(bg.Uniform(), every=3, warm_up=0, decay=0.0)
    guard({"audio": 2 * w.sum()})
    guard.observe({"audio": 2 * w.sum()})
    for losses in ({"audio": w.sum()}, {"video": w.sum()}, {"audio": w.sum() * math.nan, "video": w.sum()}):
        guard(losses)
    guard.observe({"audio": 1.5 * w.sum(), "video": w.sum()})
    assert guard.transfer.state()["audio"][:3] == pytest.approx([2.0, 1.0, 1.5])


@pytest.mark.parametrize("method", [bg.Uniform, bg.MIMO, bg.MinNorm, bg.MMPareto])
def test_until_something_is_known_a_guard_changes_nothing(method):
    plain, guarded = LateFusion(), LateFusion()
    guarded.load_state_dict(plain.state_dict())
    for model, balancer in ((plain, method()), (guarded, bg.HeldOut(method(), every=1))):
        batch = make_batch()
        balancer(model.losses(*batch)).backward()
        if isinstance(balancer, bg.HeldOut):
            balancer.observe(model.losses(*make_batch(seed=1)))
            model.zero_grad()
            balancer(model.losses(*batch)).backward()
    for mine, theirs in zip(guarded.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_options_of_the_method_inside_pass_through():
    model, batch = LateFusion(), make_batch()
    guard = bg.HeldOut(bg.OGM(model.encoders, noise=0.0))
    guard(model.losses(*batch), scores={"audio": torch.tensor(0.9), "video": torch.tensor(0.2)}).backward()
    assert guard.last.coefficients["audio"] < 1
    features = bg.HeldOut(bg.MinNorm(level="features"))
    losses = model.losses(*batch)
    features(losses, features=model.features).backward()
    assert features.last.weights is not None


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_encoders_are_damped_unless_the_joint_loss_carries_over(optimizer):
    def moved(**held_out):
        """How far each encoder's parameters go in a step, where this share of the gains carried over."""
        torch.manual_seed(0)
        model = LateFusion(trunk=False)
        guard = bg.HeldOut(bg.Uniform(), every=1, warm_up=0, decay=0.5, target="encoder", confidence=0.0)
        own = bg.BalancedOptimizer(optimizer(model.parameters(), lr=1e-3), guard, modalities=model.encoders)
        for step in range(40):
            losses = model.losses(*make_batch())
            guard({name: loss - loss.detach() + 2 - step / 20 for name, loss in losses.items()}).backward()
            own.zero_grad()
            guard.observe({name: torch.tensor(2 - held_out.get(name, 1.0) * step / 20) for name in losses})
        assert guard.update_scales().keys() == {"audio", "video"}
        guard(model.losses(*make_batch())).backward()
        before = copy.deepcopy(model.state_dict())
        own.step()
        return {n: (p - before[n]).abs().sum().item() for n, p in model.named_parameters() if "encoders" in n}

    everything, alone = moved(), moved(video=0.0, joint=0.5)
    together, not_yet = moved(video=0.0, joint=0.75), moved(video=0.0, joint=0.0)
    for name in everything:
        if "video" in name:
            assert alone[name] == 0
            assert 0 < together[name] < everything[name]
            assert not_yet[name] > together[name]
        else:
            assert alone[name] > 0


def test_without_a_joint_loss_encoders_are_left_alone():
    w = nn.Parameter(torch.ones(2))
    guard = bg.HeldOut(bg.Uniform(), every=1, warm_up=0, target="encoder")
    bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.1), guard)
    for step in range(30):
        guard({"audio": w[0] - w[0].detach() + falling(step)}).backward()
        guard.observe({"audio": falling(step, 3.0)})
    assert guard.factors["audio"] == 0
    assert guard.update_scales() == {}


def test_the_state_travels_in_the_checkpoint_of_the_optimizer():
    w = nn.Parameter(torch.ones(2))

    def fresh():
        guard = bg.HeldOut(bg.MIMO(ema=0.5), every=2, warm_up=0)
        return bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.0), guard)

    first, resumed = fresh(), fresh()
    trained(first.balancer, w, 9)
    saved = first.state_dict()
    resumed.load_state_dict(saved)
    assert resumed.balancer.factors["video"] == first.balancer.factors["video"] < 1
    assert resumed.balancer.due == first.balancer.due
    for optimizer in (first, resumed):
        trained(optimizer.balancer, w, 5)
    torch.testing.assert_close(resumed.balancer.factors["video"], first.balancer.factors["video"])
    other = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.0), bg.MIMO())
    with pytest.raises(ValueError, match="HeldOut"):
        other.load_state_dict(saved)


def test_a_check_that_fails_leaves_everything_as_it_was():
    w = nn.Parameter(torch.ones(2))
    guard = trained(bg.HeldOut(bg.Uniform(), every=1, warm_up=3), w, 20)
    guard({"audio": w[0]})
    before = copy.deepcopy(guard.state_dict())
    for wrong in ({}, {"audio": w.outer(w)}, {"audio": 1.0}, None):
        with pytest.raises((TypeError, ValueError)):
            guard.observe(wrong)
    assert guard.due
    assert str(guard.state_dict()) == str(before)


def test_rows_may_be_accumulated_under_a_guard():
    model = LateFusion()
    guard = bg.HeldOut(bg.MinNorm())
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), guard, accumulate="rows")
    for seed in range(2):
        guard(model.losses(*make_batch(seed=seed))).backward()
    optimizer.step()
    assert guard.last.weights is not None


def test_heads_that_are_attached():
    torch.manual_seed(0)

    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.ears, self.eyes, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(8, 3)

        def forward(self, audio, video):
            return self.head(torch.cat([self.ears(audio), self.eyes(video)], 1))

    model = Late()
    aux = bg.attach(model, {"audio": model.ears, "video": model.eyes}, 3)

    def losses(seed):
        inputs, labels = make_batch(seed=seed)
        return aux.losses(cross_entropy(model(inputs["audio"], inputs["video"]), labels), labels)

    guard = bg.HeldOut(bg.MIMO(), lambda: losses(99), every=2)
    base = torch.optim.SGD([*model.parameters()], lr=0.1)
    losses(0)
    aux.add_to(base)
    optimizer = bg.BalancedOptimizer(base, guard)
    for seed in range(5):
        guard(losses(seed)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(guard.factors) == {"audio", "video"}


@pytest.mark.parametrize("on_host", [True, False])
def test_the_graph_of_held_out_losses_is_not_kept(monkeypatch, on_host):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: on_host)
    w = nn.Parameter(torch.ones(2))
    guard = bg.HeldOut(bg.Uniform(), every=1, warm_up=0)
    for step in range(6):
        guard({"audio": w[0] + falling(step)}).backward()
        guard.observe({"audio": w[0] * 2 + step})
    kept = [*guard.factors.values(), *(x for known in guard.transfer.state().values() for x in known)]
    assert not any(x.requires_grad for x in kept if isinstance(x, torch.Tensor))


def test_the_scales_of_the_method_inside_are_multiplied():
    model = LateFusion(trunk=False)
    inner = bg.OGM(model.encoders, noise=0.0, target="update")
    guard = bg.HeldOut(inner, every=1, warm_up=0, target="encoder")
    bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), guard, modalities=model.encoders)
    for step in range(30):
        zero = model.losses(*make_batch())["joint"] * 0
        losses = {name: zero + falling(step) for name in ("joint", "audio", "video")}
        guard(losses, scores={"audio": 0.8, "video": 0.4}).backward()
        guard.observe({"joint": falling(step, 1.2), "audio": falling(step, 1.2), "video": falling(step, 1.2)})
    both, alone = guard.update_scales()["audio"], inner.update_scales()["audio"]
    assert 0 < guard.factors["audio"] < 1
    assert 0 < alone < 1
    assert both.item() == pytest.approx((alone * guard.factors["audio"]).item(), rel=1e-5)


def test_by_default_a_check_is_due_every_tenth_step():
    w, seen = nn.Parameter(torch.ones(1)), []
    guard = bg.HeldOut(bg.Uniform(), lambda: {"audio": w.sum()})
    for step in range(1, 32):
        guard({"audio": w.sum()}).backward()
        if guard.check():
            seen.append(step)
    assert seen == [1, 11, 21, 31]


def test_nothing_is_read_on_the_host(monkeypatch):
    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    w = nn.Parameter(torch.ones(2))
    guard = bg.HeldOut(bg.Uniform(), every=2, warm_up=1)
    with NoHostReads():
        for _ in range(7):
            guard({"joint": w.sum(), "audio": w[0], "video": w[1]}).backward()
            if guard.due:
                guard.observe({"joint": w.sum().detach(), "audio": w[0].detach()})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"every": 0}, "every=0"),
        ({"warm_up": -1}, "warm_up=-1"),
        ({"every": 1.5}, "every=1.5, warm_up=10: give whole numbers"),
        ({"warm_up": 2.5}, "warm_up=2.5: give whole numbers"),
        ({"target": "head"}, "target='head'"),
        ({"floor": 1.5}, "floor=1.5"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"confidence": -1.0}, "confidence=-1.0"),
    ],
)
def test_settings_out_of_range(options, says):
    with pytest.raises(ValueError, match=says):
        bg.HeldOut(bg.Uniform(), **options)


def test_what_is_refused():
    with pytest.raises(TypeError, match="another HeldOut"):
        bg.HeldOut(bg.HeldOut(bg.Uniform()))
    with pytest.raises(TypeError, match="a SGD"):
        bg.HeldOut(torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    with pytest.raises(TypeError, match="held_out is a dict"):
        bg.HeldOut(bg.Uniform(), {"audio": 1.0})
    with pytest.raises(RuntimeError, match="HeldOut\\(balancer, held_out="):
        bg.HeldOut(bg.Uniform()).check()
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(RuntimeError, match="BalancedOptimizer"):
        bg.HeldOut(bg.Uniform(), target="encoder")({"audio": w.sum()})
    guard = bg.HeldOut(bg.Uniform(), target="encoder", every=1)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.1), guard)
    guard({"joint": w.sum(), "audio": w.sum()}).backward()
    guard.observe({"joint": w.sum(), "audio": w.sum()})
    with pytest.raises(ValueError, match="modalities"):
        optimizer.step()
    assert w.item() == 1
