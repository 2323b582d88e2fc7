"""``every=``: solve in one step of several, and go on with the weights in those between."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch


def half_and_half(gramian):
    """A rule that depends on all of the Gramian."""
    return 1 + (gramian.sum(1) - gramian.diagonal()) / gramian.diagonal()


METHODS = {
    "MinNorm": lambda **options: bg.MinNorm(**options),
    "Gramian": lambda **options: bg.Gramian(half_and_half, **options),
    "features": lambda **options: bg.MinNorm(level="features", **options),
    "params": lambda **options: bg.MinNorm(params=options.pop("model"), **options),
}
methods = pytest.mark.parametrize("kind", METHODS)


def build(kind, every, model):
    named = {"model": model} if kind == "params" else {}
    return METHODS[kind](**({} if every == 1 else {"every": every}), **named)


def call(balancer, model, seed, modalities=MODALITIES):
    losses = model.losses(*make_batch(modalities, seed=seed))
    return balancer(losses, model.features if balancer.level == "features" else None)


def train(kind, every, steps=7, model=None, balancer=None, first=0):
    model = LateFusion(MODALITIES) if model is None else model
    balancer = build(kind, every, model) if balancer is None else balancer
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), 0.1), balancer)
    weights = []
    for seed in range(first, first + steps):
        call(balancer, model, seed).backward()
        optimizer.step()
        optimizer.zero_grad()
        weights.append(balancer.last.weights)
    return torch.stack(weights), model, balancer


@methods
def test_one_is_a_solve_in_every_step(kind):
    torch.manual_seed(0)
    want, model, _ = train(kind, 1)
    torch.manual_seed(0)
    again = LateFusion(MODALITIES)
    balancer = METHODS[kind](every=1, **({"model": again} if kind == "params" else {}))
    got, _, _ = train(kind, 1, model=again, balancer=balancer)
    assert torch.equal(got, want)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not balancer.state_dict()


@methods
@pytest.mark.parametrize("every", [2, 3])
def test_between_two_solves_the_weights_stay(kind, every):
    weights, _, _ = train(kind, every, steps=7)
    for step, chosen in enumerate(weights):
        assert torch.equal(chosen, weights[step - step % every])
    assert not torch.equal(weights[0], weights[every])


@methods
def test_the_gradient_between_is_that_of_the_weighted_losses(kind):
    torch.manual_seed(0)
    model = LateFusion(MODALITIES).double()
    balancer = build(kind, 4, model)
    for seed in range(4):
        losses = model.losses(*make_batch(MODALITIES, seed=seed, dtype=torch.float64))
        model.zero_grad()
        scalar = balancer(losses, model.features if balancer.level == "features" else None)
        torch.testing.assert_close(scalar.detach(), sum(losses.values()).detach())
        scalar.backward()
        again = model.losses(*make_batch(MODALITIES, seed=seed, dtype=torch.float64))
        weighed = sum(w * loss for w, loss in zip(balancer.last.weights, again.values(), strict=True))
        for p, want in zip(model.parameters(), torch.autograd.grad(weighed, list(model.parameters())), strict=True):
            torch.testing.assert_close(p.grad, want)


class Passes(torch.autograd.Function):
    """Counts the backwards that come through."""

    count = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        Passes.count += 1
        return grad


def test_a_step_between_is_one_backward():
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(every=3)
    counts = []
    for seed in range(6):
        (inputs, label), Passes.count = make_batch(MODALITIES, seed=seed), 0
        z = Passes.apply(model.trunk(model.encoders["audio"](inputs["audio"])))
        losses = {m: cross_entropy(model.heads[m](z), label) for m in MODALITIES}
        balancer(losses).backward()
        counts.append(Passes.count)
    assert counts == [3, 1, 1, 3, 1, 1]


def test_losses_are_known_by_name():
    """One that was missing when the weights were solved for has 1; one that is missing now keeps its own."""
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(every=4, joint_floor=0)

    def weights(names, seed):
        losses = model.losses(*make_batch(MODALITIES, seed=seed))
        balancer({name: losses[name] for name in names}).backward()
        return dict(zip(balancer.last.names, balancer.last.weights.tolist(), strict=True))

    solved = weights(["audio", "joint", "video"], 0)
    assert weights(["text", "video", "audio"], 1) == {"text": 1.0, "video": solved["video"], "audio": solved["audio"]}
    assert weights(["joint"], 2) == {"joint": solved["joint"]}
    assert weights(["video", "audio"], 3) == {"video": solved["video"], "audio": solved["audio"]}
    fresh = weights(["video", "text"], 4)
    assert set(fresh) == {"video", "text"}
    assert weights(["joint", "text"], 5) == {"joint": solved["joint"], "text": fresh["text"]}


@methods
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_it_goes_on_from_a_checkpoint(kind, stop):
    torch.manual_seed(0)
    want, whole, _ = train(kind, 3)
    torch.manual_seed(0)
    before, model, balancer = train(kind, 3, steps=stop)
    resumed = build(kind, 3, model)
    state = copy.deepcopy(balancer.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    resumed.load_state_dict(state)
    after, _, _ = train(kind, 3, steps=7 - stop, model=model, balancer=resumed, first=stop)
    assert torch.equal(torch.cat([before, after]), want)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_a_smaller_period_solves_sooner_after_a_resume():
    _, model, balancer = train("MinNorm", 10, steps=1)
    resumed = bg.MinNorm(every=2)
    resumed.load_state_dict(balancer.state_dict())
    weights, _, _ = train("MinNorm", 2, steps=2, model=model, balancer=resumed)
    assert torch.equal(weights[0], balancer.last.weights)
    assert not torch.equal(weights[1], weights[0])


def test_weights_that_are_not_finite_serve_no_other_step():
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(every=2)
    losses = model.losses(*make_batch(MODALITIES))
    balancer(losses | {"audio": losses["audio"] * torch.inf}).backward()
    assert not balancer.last.weights.isfinite().all()  # a loss scaler sees it, and skips the step
    model.zero_grad()
    call(balancer, model, 1).backward()
    assert torch.equal(balancer.last.weights, torch.ones(4, dtype=torch.float64))
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_failed_solve_is_tried_again():
    def fails(gramian):
        raise ArithmeticError("no")

    model, balancer = LateFusion(MODALITIES), bg.Gramian(fails, every=3)
    for seed in range(2):
        with pytest.raises(ArithmeticError, match="no"):
            call(balancer, model, seed).backward()
    balancer.weighting = half_and_half
    call(balancer, model, 2).backward()
    assert balancer.last.gramian is not None


def test_outside_of_training_nothing_moves():
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(every=3)
    call(balancer, model, 0).backward()
    state = balancer.state_dict()
    with torch.no_grad():
        call(balancer, model, 1)
    balancer.eval()
    call(balancer, model, 2).backward()
    assert balancer.last.gramian is not None  # solved, and not kept
    assert all(torch.equal(value, state[key]) for key, value in balancer.state_dict().items())


def test_factors_weigh_the_weights_that_stay():
    model = LateFusion(MODALITIES)
    guard = bg.HeldOut(bg.MinNorm(every=2))
    call(guard, model, 0).backward()
    solved = guard.last.weights
    guard.factors = {"audio": torch.tensor(0.25)}
    call(guard, model, 1).backward()
    assert torch.equal(guard.last.weights, solved * torch.tensor([1, 0.25, 1, 1], dtype=torch.float64))


def test_no_value_is_read_on_the_host():
    """Of a step between; those that solve on the CPU read the Gramian there."""
    model, balancer = LateFusion(MODALITIES), bg.MinNorm(every=2)
    call(balancer, model, 0).backward()
    with NoHostReads():
        call(balancer, model, 1).backward()


def in_rows(balancer):
    return bg.BalancedOptimizer(torch.optim.SGD([nn.Parameter(torch.ones(1))]), balancer, accumulate="rows")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bg.MinNorm(every=0), "every=0: give a whole number"),
        (lambda: bg.MinNorm(every=2.5), "every=2.5: give a whole number"),
        (lambda: bg.MinNorm(every=2, groups="tensor"), "every=2 .* weights of several problems; leave every out"),
        (lambda: in_rows(bg.MinNorm(every=2)), "accumulate='rows' solves once per window"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_method_without_a_gramian_has_no_solve_to_skip():
    class Mine(bg.Balancer):
        def weigh(self, problem):
            return bg.Weighting(torch.ones_like(problem.losses))

    with pytest.raises(ValueError, match="Mine has no weights from a Gramian"):
        Mine(every=2)
