"""A guarded balancer answers as the balancer inside; what the guard keeps survives a stop at any step."""

import copy
import inspect

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch
from tests.state_cases import METHODS, WITHOUT, built

GUARDS = ("HeldOut", "GradientBlending")  # which are not guarded once more
INSIDE = {kind: make for kind, make in (METHODS | WITHOUT).items() if not kind.startswith(GUARDS)}
every = pytest.mark.parametrize("kind", INSIDE)
OWN = {"target", "state", "load_state", "forward"}  # the guard has these itself


def public(balancer):
    """Names of what ``Balancer`` and the method add to a module."""
    return {name for name in dir(balancer) if not name.startswith("_")} - set(dir(nn.Module()))


@every
def test_all_that_is_public_is_that_of_the_balancer_inside(kind):
    model = LateFusion(trunk=kind != "DGL")
    balancer = INSIDE[kind](model)
    guard = bg.HeldOut(balancer)
    for name in public(balancer) - OWN:
        mine, inner = getattr(guard, name), getattr(balancer, name)
        if inspect.ismethod(inner) and hasattr(bg.Balancer, name):
            assert inspect.signature(mine) == inspect.signature(inner), name
        else:
            assert mine is inner or mine == inner, name


@every
def test_what_is_set_is_set_inside(kind):
    model = LateFusion(trunk=kind != "DGL")
    balancer = INSIDE[kind](model)
    guard = bg.HeldOut(balancer)
    for name in {"level", "include_exclusive", "record_gramian", "process_group", *vars(balancer)} - OWN:
        if name.startswith("_") or name == "training":
            continue
        value = None if name == "process_group" else object()
        setattr(guard, name, value)
        assert getattr(balancer, name) is value, name
        assert getattr(guard, name) is value, name


def test_what_is_nowhere_is_an_attribute_error_and_may_be_set():
    guard = bg.HeldOut(bg.MIMO())
    with pytest.raises(AttributeError, match="nowhere"):
        _ = guard.nowhere
    with pytest.raises(AttributeError, match="_averages"):
        _ = guard._averages
    guard.nowhere = 1
    assert guard.nowhere == 1
    assert not hasattr(guard.balancer, "nowhere")


def test_settings_of_the_guard_stay_its_own():
    inner = bg.OGM({"audio": nn.Linear(1, 1), "video": nn.Linear(1, 1)}, target="gradient")
    guard = bg.HeldOut(inner, every=7, floor=0.5, target="auxiliary")
    assert (guard.target, inner.target) == ("auxiliary", "gradient")
    guard.every = 3
    assert guard.every == 3
    assert not hasattr(inner, "every")


def test_the_weights_of_a_problem_are_those_inside_with_the_factors():
    guard = bg.HeldOut(bg.MIMO())
    problem = bg.Problem(("joint", "audio"), torch.tensor([1.0, 2.0]))
    plain = guard.choose(problem).weights
    guard.factors = {"audio": torch.tensor(0.25)}
    assert torch.equal(guard.choose(problem).weights, plain * torch.tensor([1.0, 0.25]))
    assert torch.equal(guard.weigh(problem).weights, plain)


def test_agm_is_guarded_too():
    module = built("HeldOut, AGM")
    inputs, labels = make_batch()
    module(labels=labels, **inputs)["loss"].backward()
    assert module.balancer.last.coefficients.keys() == {"audio", "video"}


def test_rows_are_refused_as_inside():
    model = LateFusion()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="MIMO"):
        bg.BalancedOptimizer(optimizer, bg.HeldOut(bg.MIMO()), accumulate="rows")


def losses(*names, weight):
    return {name: weight.sum() for name in names}


def test_a_misspelt_held_out_loss_is_named():
    weight = nn.Parameter(torch.ones(1))
    guard = bg.HeldOut(bg.Uniform(), every=1)
    guard(losses("joint", "audio", "video", weight=weight)).backward()
    with pytest.warns(bg.InactiveBalancerWarning, match=r"\['vidoe'\] are ignored.*'audio', 'joint', 'video'") as said:
        guard.observe(losses("joint", "audio", "vidoe", weight=weight))
    assert [warning.filename for warning in said] == [__file__]
    guard(losses("joint", "audio", "video", weight=weight)).backward()
    guard.observe(losses("joint", "audio", "vidoe", weight=weight))  # said once


def test_a_modality_that_the_first_batches_lack_is_not_misspelt():
    weight = nn.Parameter(torch.ones(1))
    guard = bg.HeldOut(bg.Uniform(), every=2)
    for names in [("joint", "audio"), ("joint", "audio", "video"), ("joint", "audio"), ("joint", "audio")]:
        guard(losses(*names, weight=weight)).backward()
        if guard.due:
            guard.observe(losses("joint", "audio", "video", weight=weight))


def test_a_held_out_loss_that_training_never_has_is_named_by_the_second_check():
    weight = nn.Parameter(torch.ones(1))
    guard = bg.HeldOut(bg.Uniform(), every=1)
    guard(losses("joint", weight=weight)).backward()
    guard.observe(losses("joint", "audio", weight=weight))
    guard(losses("joint", weight=weight)).backward()
    with pytest.warns(bg.InactiveBalancerWarning, match="audio"):
        guard.observe(losses("joint", "audio", weight=weight))


@pytest.mark.parametrize("target", ["auxiliary", "encoder"])
@pytest.mark.parametrize("stop", range(9))
def test_a_stop_at_any_step_between_checks_changes_nothing(stop, target):
    held = [make_batch(seed=100 + k) for k in range(3)]

    def fresh(seed=0):
        torch.manual_seed(seed)
        model = LateFusion()
        guard = bg.HeldOut(
            bg.MIMO(ema=0.5), lambda: model.losses(*held[guard.checks % 3]), every=4, warm_up=0, target=target
        )
        base = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        return model, bg.BalancedOptimizer(base, guard, modalities=model.encoders)

    def trained(run, steps):
        model, optimizer = run
        for step in steps:
            batch = make_batch(seed=step)
            names = ("joint", "audio", "video") if step % 3 else ("joint", "audio")
            optimizer.balancer({k: x for k, x in model.losses(*batch).items() if k in names}).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model

    through, resumed = fresh(), fresh(seed=1)
    trained(through, range(stop))
    resumed[0].load_state_dict(through[0].state_dict())
    resumed[1].load_state_dict(copy.deepcopy(through[1].state_dict()))
    trained(through, range(stop, 15))
    trained(resumed, range(stop, 15))
    torch.testing.assert_close(resumed[0].state_dict(), through[0].state_dict(), rtol=0, atol=0)
    assert resumed[1].balancer.state()["transfer"] == through[1].balancer.state()["transfer"]
    assert resumed[1].balancer.checks == through[1].balancer.checks > 3


def test_numbers_of_a_device_come_back_as_they_were(monkeypatch):
    """As on a GPU: tensors in, tensors out; and the other way round, floats beside them."""
    w = nn.Parameter(torch.ones(2))

    def run(guard, steps):
        for step in steps:
            guard({"joint": w.sum() / (step + 1), "audio": w[0] / (step + 2)}).backward()
            if guard.due:
                guard.observe({"joint": w.sum().detach() / (step + 2), "audio": w[0].detach()})
        return guard

    monkeypatch.setattr("balanced_grad.host.on_host", lambda *_: False)
    through, resumed = (bg.HeldOut(bg.Uniform(), every=2, warm_up=0) for _ in range(2))
    resumed.load_state_dict(run(through, range(9)).state_dict())
    run(through, range(9, 20))
    run(resumed, range(9, 20))
    torch.testing.assert_close(resumed.state_dict(), through.state_dict(), rtol=0, atol=0)
    monkeypatch.undo()
    elsewhere = bg.HeldOut(bg.Uniform(), every=2, warm_up=0)
    elsewhere.load_state_dict(through.state_dict())
    run(elsewhere, range(20, 24))
    assert all(isinstance(x, float) for known in elsewhere.state()["transfer"].values() for x in known)
