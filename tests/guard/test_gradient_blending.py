"""Gradient blending: weights of G / O², online, from what the guard measures."""

import copy

import pytest
import torch

import balanced_grad as bg
from tests.conftest import NoHostReads


def blended(train, held_out, checks=12, **options):
    """Weights after some checks of losses that are functions of the check."""
    blend = bg.GradientBlending(every=1, warm_up=3, **options)
    for check in range(checks):
        losses = {name: torch.tensor(f(check), requires_grad=True) for name, f in train.items()}
        blend(losses).backward()
        blend.observe({name: torch.tensor(f(check)) for name, f in held_out.items()})
    return {name: factor.item() for name, factor in blend.factors.items()}, blend


def falling(end, start=10.0):
    return lambda check: start if check == 0 else end


def test_weights_are_those_of_the_formula():
    train = {"joint": falling(2.0), "audio": falling(1.0), "video": falling(0.5)}
    held = {"joint": falling(4.0), "audio": falling(3.0), "video": falling(8.0)}
    found, blend = blended(train, held, checks=60, decay=0.5)
    wanted = {}
    for name, track in blend.transfer.tracks.items():
        excess, gain = track.held_out - track.train, track.start - track.held_out
        wanted[name] = gain / (excess**2 + track.excess_variance(0.5))
    total = sum(wanted.values())
    assert found == pytest.approx({name: 3 * value / total for name, value in wanted.items()}, rel=1e-5)
    # Without noise G / O²: 6/4, 7/4 and 2/56.25.
    assert found["joint"] / found["audio"] == pytest.approx(6 / 7, rel=0.05)
    assert found["video"] < 0.1


def test_the_weights_sum_to_the_number_of_losses_and_multiply_the_gradient():
    train = {"joint": falling(2.0), "audio": falling(1.0)}
    found, blend = blended(train, {"joint": falling(3.0), "audio": falling(8.0)})
    assert sum(found.values()) == pytest.approx(2)
    w = torch.ones((), requires_grad=True)
    blend({"joint": 1 * w, "audio": 10 * w}).backward()
    assert w.grad.item() == pytest.approx(found["joint"] + 10 * found["audio"])


def test_a_loss_that_generalises_nothing_gets_nothing_and_none_at_all_is_the_sum():
    train = {"joint": falling(2.0), "audio": falling(1.0)}
    found, _ = blended(train, {"joint": falling(3.0), "audio": falling(12.0)})
    assert found == pytest.approx({"joint": 2.0, "audio": 0.0})
    found, _ = blended(train, {"joint": falling(13.0), "audio": falling(12.0)})
    assert found == {"joint": 1.0, "audio": 1.0}


def test_in_the_warm_up_and_before_the_first_check_all_weights_are_one():
    assert bg.GradientBlending().factors == {}
    found, _ = blended(
        {"joint": falling(2.0), "audio": falling(1.0)}, {"joint": falling(3.0), "audio": falling(8.0)}, 3
    )
    assert found == {"joint": 1.0, "audio": 1.0}


def test_a_loss_without_over_fitting_stays_bounded():
    train = {"joint": falling(2.0), "audio": falling(2.0)}
    found, _ = blended(train, {"joint": falling(2.0), "audio": falling(2.5)}, 40)
    assert torch.tensor(list(found.values())).isfinite().all()
    assert found["joint"] > found["audio"] > 0


def test_it_goes_on_from_its_state():
    train = {"joint": falling(2.0), "audio": falling(1.0)}
    _, blend = blended(train, {"joint": falling(3.0), "audio": falling(8.0)})
    other = bg.GradientBlending(every=1, warm_up=3)
    other.load_state_dict(copy.deepcopy(blend.state_dict()))
    assert other.factors == blend.factors
    with pytest.raises(ValueError, match="the state is of a GradientBlending, this is a HeldOut"):
        bg.HeldOut(bg.Uniform()).load_state_dict(blend.state_dict())


def test_the_optimizer_calls_what_it_was_given():
    w = torch.nn.Parameter(torch.tensor([3.0]))
    asked = []
    blend = bg.GradientBlending(lambda: asked.append(1) or {"joint": w.square().sum()}, every=2)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.1), blend)
    for _ in range(6):
        blend({"joint": w.square().sum()}).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(asked) == blend.checks == 3


def test_no_host_read_in_a_step():
    _, blend = blended({"joint": falling(2.0)}, {"joint": falling(3.0)})
    w = torch.ones((), requires_grad=True)
    with NoHostReads():
        blend({"joint": w * 2}).backward()
