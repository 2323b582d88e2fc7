"""Learning rates per modality: those of parameter groups with scaled lr, whatever optimizer, method and schedule."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR

import balanced_grad as bg
from balanced_grad.integrations import log_values
from tests.conftest import NoHostReads
from tests.optim.conftest import Model, Paced

# The lr is a factor on the whole step of these: a decoupled weight decay, momentum and all.
PROPORTIONAL = {
    "SGD": (optim.SGD, {"weight_decay": 0.3}),
    "SGD, momentum": (optim.SGD, {"momentum": 0.9, "weight_decay": 0.3}),
    "SGD, Nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam": (optim.Adam, {"weight_decay": 0.3}),
    "AdamW": (optim.AdamW, {"weight_decay": 0.3}),
    "AdamW, foreach": (optim.AdamW, {"weight_decay": 0.3, "amsgrad": True, "foreach": True}),
    "RMSprop": (optim.RMSprop, {"momentum": 0.5}),
}


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return Model(dtype)


def trained(net, balancer, optimizer):
    """The parameters after some steps with an lr that is halved on the way."""
    schedule = StepLR(optimizer, step_size=2, gamma=0.5)
    for step in range(6):
        optimizer.zero_grad()
        balancer(net.losses(step)).backward()
        optimizer.step()
        schedule.step()
    return list(net.parameters())


@pytest.mark.parametrize("name", PROPORTIONAL)
@settings(max_examples=15, deadline=None)
@given(audio=st.floats(0, 4), video=st.floats(0, 4))
def test_a_rate_is_a_parameter_group_with_scaled_lr(name, audio, video):
    kind, options = PROPORTIONAL[name]

    net, other, balancer = model(), model(), bg.Uniform()
    rates = {"audio": audio, "video": video}
    rated = bg.BalancedOptimizer(
        kind(net.parameters(), lr=0.05, **options), balancer, modalities=net.modalities, rates=rates
    )
    groups = [{"params": [p], "lr": 0.05 * rates[name]} for name, p in other.modalities.items()]
    plain = kind([{"params": [other.fused]}, *groups], lr=0.05, **options)
    torch.testing.assert_close(trained(net, balancer, rated), trained(other, balancer, plain), rtol=1e-11, atol=1e-12)


def test_a_schedule_is_a_lambda_of_the_lr_of_a_group():
    schedule = bg.freeze(until=1, after=7, rate=bg.warm_up(4, start=0.1, end=2.0))
    net, other = model(), model()
    rated = bg.BalancedOptimizer(
        optim.AdamW(net.parameters(), lr=0.05), bg.Uniform(), modalities=net.modalities, rates={"video": schedule}
    )
    plain = optim.AdamW([{"params": [other.audio, other.fused]}, {"params": [other.video]}], lr=0.05)
    lambdas = optim.lr_scheduler.LambdaLR(plain, [lambda _: 1.0, schedule])
    for step in range(9):
        for each, optimizer in ((net, rated), (other, plain)):
            optimizer.zero_grad()
            bg.Uniform()(each.losses(step)).backward()
            optimizer.step()
        lambdas.step()
    torch.testing.assert_close(list(net.parameters()), list(other.parameters()), rtol=1e-11, atol=1e-12)


def wrapped(net, balancer, rates, kind=optim.AdamW):
    return bg.BalancedOptimizer(kind(net.parameters(), lr=0.05), balancer, modalities=net.modalities, rates=rates)


def stepped(net, balancer, optimizer, *steps):
    for step in steps:
        optimizer.zero_grad()
        balancer(net.losses(step)).backward()
        optimizer.step()
    return list(net.parameters())


def test_a_frozen_modality_stays_bit_by_bit_and_weight_decay_with_it():
    net, balancer = model(torch.float32), bg.MIMO()
    before = net.video.detach().clone()
    stepped(net, balancer, wrapped(net, balancer, {"video": 0}), 0, 1, 2)
    assert torch.equal(net.video, before)
    assert not torch.equal(net.audio, model(torch.float32).audio)


def test_a_rate_multiplies_the_factor_of_a_method():
    net, other = model(), model()
    rated, slowed = Paced(), Paced()
    slowed.update_scales = lambda: {name: 0.5 * factor for name, factor in slowed.scales.items()}
    both = stepped(net, rated, wrapped(net, rated, {"audio": 0.5, "video": 0.5}), 0, 1, 2)
    torch.testing.assert_close(both, stepped(other, slowed, wrapped(other, slowed, None), 0, 1, 2))


@pytest.mark.parametrize("rates", [None, {}, {"audio": 1.0, "video": bg.warm_up(1)}])
def test_a_rate_of_one_copies_nothing(monkeypatch, rates):
    net, balancer = model(), bg.Uniform()
    optimizer = wrapped(net, balancer, rates, optim.SGD)
    balancer(net.losses(0)).backward()
    monkeypatch.setattr(torch.Tensor, "clone", lambda *_, **__: pytest.fail("a parameter was copied"))
    optimizer.step()


def test_no_host_read():
    net, balancer = model(), Paced()
    optimizer = wrapped(net, balancer, {"audio": 2.0, "video": bg.warm_up(3)}, optim.SGD)
    balancer(net.losses(0)).backward()
    with NoHostReads():
        optimizer.step()


def test_the_rates_are_in_the_record_and_in_the_log():
    net, balancer = model(), bg.HeldOut(bg.MIMO())
    optimizer = wrapped(net, balancer, {"audio": 2.0, "video": bg.warm_up(4)})
    stepped(net, balancer, optimizer, 0, 1)
    assert balancer.last.rates == {"audio": 2.0, "video": 0.5}
    assert balancer.last.to_dict()["rates"] == {"audio": 2.0, "video": 0.5}
    assert log_values(balancer.last)["balance/rate/video"] == 0.5
    assert "rates" not in bg.Step(("joint",), torch.ones(1)).to_dict()


def test_two_optimizers_of_one_balancer_note_their_own_rates():
    net, balancer = model(), bg.Uniform()
    one, two = (
        bg.BalancedOptimizer(optim.SGD([p], lr=0.1), balancer, modalities={name: p}, rates={name: rate})
        for (name, p), rate in zip(net.modalities.items(), (2.0, 3.0), strict=True)
    )
    balancer(net.losses(0)).backward()
    one.step()
    two.step()
    assert balancer.last.rates == {"audio": 2.0, "video": 3.0}


def test_a_balancer_that_is_not_called_is_reported_also_beside_rates():
    net, balancer = model(), bg.MIMO()
    optimizer = wrapped(net, balancer, {"audio": 2.0})
    stepped(net, balancer, optimizer, 0)
    for _ in range(9):
        optimizer.step()
    with pytest.warns(bg.InactiveBalancerWarning, match="has not been called in 10 steps"):
        optimizer.step()


def through_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("stop", range(5))
def test_a_schedule_goes_on_where_it_was(stop):
    rates = {"audio": bg.warm_up(4), "video": bg.freeze(until=3)}
    net, balancer = model(), bg.MIMO()
    optimizer = wrapped(net, balancer, rates)
    stepped(net, balancer, optimizer, *range(stop))
    other, again = model(), bg.MIMO()
    other.load_state_dict(net.state_dict())
    resumed = wrapped(other, again, rates)
    resumed.load_state_dict(through_file(copy.deepcopy(optimizer.state_dict())))
    rest = range(stop, 7)
    torch.testing.assert_close(
        stepped(other, again, resumed, *rest), stepped(net, balancer, optimizer, *rest), rtol=0, atol=0
    )


def test_a_checkpoint_that_does_not_load_leaves_the_steps():
    net = model()
    saved = wrapped(net, bg.MIMO(), {"audio": bg.warm_up(4)})
    stepped(net, saved.balancer, saved, 0, 1)
    fresh = bg.BalancedOptimizer(
        optim.AdamW([net.audio]), bg.MIMO(), modalities={"audio": net.audio}, rates={"audio": bg.warm_up(4)}
    )
    with pytest.raises(ValueError, match="parameter group"):
        fresh.load_state_dict(saved.state_dict())
    fresh.balancer({"audio": net.losses(0)["audio"]}).backward()
    fresh.step()
    assert fresh.balancer.last.rates == {"audio": 0.25}


def test_pickle_keeps_rates_and_steps():
    net, balancer = model(), bg.Uniform()
    optimizer = wrapped(net, balancer, {"audio": bg.warm_up(4)}, optim.SGD)
    stepped(net, balancer, optimizer, 0, 1)
    optimizer.zero_grad()
    copied = pickle.loads(pickle.dumps((net, optimizer)))
    stepped(copied[0], copied[1].balancer, copied[1], 2)
    assert copied[1].balancer.last.rates == {"audio": 0.75}


@pytest.mark.parametrize(
    ("rates", "error", "words"),
    [
        ({"smell": 2.0}, ValueError, r"rates has 'smell', which is no modality; known are \['audio', 'video'\]"),
        ({"joint": 2.0}, ValueError, "'joint', which is no modality"),
        ({"audio": -1.0}, ValueError, "rate of 'audio' is -1.0; give a finite number, 0"),
        ({"audio": float("nan")}, ValueError, "rate of 'audio' is nan"),
        ({"video": float("inf")}, ValueError, "rate of 'video' is inf"),
        ({"audio": "fast"}, TypeError, "rate of 'audio' is a str; give a number, or a function"),
        ({"audio": torch.ones(())}, TypeError, "rate of 'audio' is a tensor of shape"),
        (2.0, TypeError, "rates is a float; give a mapping"),
    ],
)
def test_bad_rates_are_refused(rates, error, words):
    with pytest.raises(error, match=words):
        wrapped(model(), bg.Uniform(), rates)


def test_a_function_is_judged_before_anything_moves():
    net, balancer = model(), bg.Uniform()
    optimizer = wrapped(net, balancer, {"audio": lambda step: 1.0 - step})
    stepped(net, balancer, optimizer, 0, 1)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(ValueError, match=r"rate of 'audio' is -1.0"):
        stepped(net, balancer, optimizer, 2)
    torch.testing.assert_close(list(net.parameters()), before, rtol=0, atol=0, check_stride=False)


def test_rates_without_modalities_say_what_to_write():
    net = model()
    with pytest.raises(ValueError, match=r"write modalities=\{'audio': model.audio_encoder\}"):
        bg.BalancedOptimizer(optim.SGD(net.parameters()), bg.Uniform(), rates={"audio": 2.0})


def test_a_parameter_of_two_modalities_is_refused_by_their_names():
    trunk = nn.Linear(3, 3)
    encoders = {"audio": nn.Sequential(nn.Linear(2, 3), trunk), "video": nn.Sequential(nn.Linear(4, 3), trunk)}
    parameters = [p for encoder in encoders.values() for p in encoder.parameters()]
    with pytest.raises(ValueError, match=r"modality 'audio' and in modality 'video'.*belongs in shared="):
        bg.BalancedOptimizer(optim.SGD(list(set(parameters))), bg.Uniform(), modalities=encoders, rates={"audio": 2.0})


def test_an_optimizer_that_averages_weights_is_refused():
    class ScheduleFree(optim.SGD):
        pass

    net, balancer = model(), bg.Uniform()
    optimizer = wrapped(net, balancer, {"audio": 2.0}, ScheduleFree)
    with pytest.raises(RuntimeError, match=r"factors that rates= puts on its update; use a parameter group"):
        stepped(net, balancer, optimizer, 0)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="steps=0: give a whole number"):
        bg.warm_up(0)
    for wrong in ({}, {"until": -1}, {"until": 3, "after": 3}, {"until": 1.5}):
        with pytest.raises(ValueError, match="give whole numbers of steps"):
            bg.freeze(**wrong)
