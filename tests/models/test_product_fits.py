"""Fits of exponents are where the grid says the minimum is, in any unit, order and number of copies of the items."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from balanced_grad.models import ProductOfExperts, ProductOfHeads, _convex, fit_temperature, fit_weights

quick = hypothesis.settings(deadline=None, max_examples=20)
TASKS = ("classification", "multilabel", "regression")
SHRINKAGES = st.sampled_from([0.0, 0.01, 1.0, math.inf])
LOG_2PI = math.log(2 * math.pi)


def passing(names, **options):
    return ProductOfExperts({name: nn.Identity() for name in names}, **options)


def sample(task, seed, items=60):
    """Three experts of different worth, and targets."""
    random = torch.Generator().manual_seed(seed)
    noise = {"a": 1.0, "b": 2.0, "c": 4.0}
    if task == "classification":
        y = torch.randint(3, (items,), generator=random)
        truth = nn.functional.one_hot(y, 3).double()
    else:
        y = torch.rand(items, 2, generator=random).double()
        y = (y < 0.4).double() if task == "multilabel" else y
        truth = 2 * y - 1 if task == "multilabel" else y
    outputs = {n: truth + s * torch.randn(truth.shape, generator=random).double() for n, s in noise.items()}
    if task == "regression":
        outputs = {n: torch.cat([x, torch.randn(x.shape, generator=random).double()], 1) for n, x in outputs.items()}
    return outputs, y


def scaled(task, outputs, factor):
    """Outputs whose exponents are to be ``1 / factor`` times as large."""
    if task != "regression":
        return {name: factor * x for name, x in outputs.items()}
    parts = {name: x.chunk(2, 1) for name, x in outputs.items()}
    return {name: torch.cat([mean, log_variance - math.log(factor)], 1) for name, (mean, log_variance) in parts.items()}


def exponents(task, outputs, y, shrinkage):
    return fit_weights(passing(outputs, task=task), outputs, y, shrinkage=shrinkage).exponents


@quick
@hypothesis.given(task=st.sampled_from(TASKS), seed=st.integers(0, 999), shrinkage=SHRINKAGES, power=st.integers(-6, 6))
def test_exponents_change_with_the_unit_and_predictions_do_not(task, seed, shrinkage, power):
    outputs, y = sample(task, seed)
    factor = 10.0**power
    one, other = exponents(task, outputs, y, shrinkage), exponents(task, scaled(task, outputs, factor), y, shrinkage)
    assert {name: factor * w for name, w in other.items()} == pytest.approx(one, rel=1e-4, abs=1e-5)


@quick
@hypothesis.given(task=st.sampled_from(TASKS), seed=st.integers(0, 999), shrinkage=SHRINKAGES)
def test_exponents_do_not_depend_on_order_or_repetition(task, seed, shrinkage):
    outputs, y = sample(task, seed)
    one = exponents(task, outputs, y, shrinkage)
    order = torch.randperm(len(y))
    assert exponents(task, {n: x[order] for n, x in outputs.items()}, y[order], shrinkage) == pytest.approx(
        one, rel=1e-4, abs=1e-5
    )
    backwards = dict(reversed(outputs.items()))
    assert exponents(task, backwards, y, shrinkage) == pytest.approx(one, rel=1e-4, abs=1e-5)
    twice = {n: torch.cat([x, x]) for n, x in outputs.items()}
    assert exponents(task, twice, torch.cat([y, y]), shrinkage) == pytest.approx(one, rel=1e-4, abs=1e-5)


@quick
@hypothesis.given(task=st.sampled_from(TASKS), seed=st.integers(0, 999), shift=st.floats(-8, 8))
def test_one_scale_for_one_expert_is_answered_by_its_exponent(task, seed, shift):
    """Without shrinkage every expert is on its own, whatever unit it has alone."""
    outputs, y = sample(task, seed)
    one = exponents(task, outputs, y, 0.0)
    outputs["b"] = scaled(task, {"b": outputs["b"]}, math.exp(shift))["b"]
    other = exponents(task, outputs, y, 0.0)
    other["b"] *= math.exp(shift)
    assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("log_variance", range(-14, 15, 2))
@pytest.mark.parametrize("items", [50, 400])
@pytest.mark.parametrize("fit", ["temperature", "equal"])
def test_a_gaussian_is_at_its_minimum(log_variance, items, fit):
    """By hand: the best exponent is the claimed variance over the mean squared error."""
    y = torch.randn(items, 1).double()
    mean = y + torch.randn(items, 1).double()
    outputs = {"a": torch.cat([mean, torch.full_like(mean, log_variance)], 1)}
    product = passing(["a"], task="regression")
    error = (y - mean).square().mean()
    found = (
        fit_temperature(product, outputs, y)
        if fit == "temperature"
        else fit_weights(product, outputs, y, shrinkage=math.inf)
    )
    assert found.exponents["a"] == pytest.approx(math.exp(log_variance) / float(error), rel=1e-3)
    assert found.after == pytest.approx(0.5 * (LOG_2PI + float(error.log()) + 1), abs=1e-6)
    assert product.losses(outputs, y)["joint"].item() == pytest.approx(found.after, abs=1e-5)


@pytest.mark.parametrize("log_variances", [(-14.0, 14.0), (14.0, 0.0), (-9.0, -9.0), (-14.0, -8.0)])
def test_two_gaussians_are_at_the_minimum_of_a_grid(log_variances):
    y = torch.randn(100, 1).double()
    errors = [s * torch.randn(100, 1).double() for s in (0.7, 1.5)]
    outputs = {
        n: torch.cat([y + e, torch.full_like(e, lv)], 1) for n, e, lv in zip("ab", errors, log_variances, strict=True)
    }
    found = fit_weights(passing("ab", task="regression"), outputs, y, shrinkage=0.0)
    precisions = torch.logspace(-4, 3, 500).double()
    total = precisions[:, None] + precisions
    moments = torch.stack([torch.stack([(e * f).mean() for f in errors]) for e in errors])
    square = moments[0, 0] * precisions[:, None] ** 2 + moments[1, 1] * precisions**2
    square = square + 2 * moments[0, 1] * precisions[:, None] * precisions
    grid = 0.5 * (LOG_2PI - total.log() + square / total)
    assert found.after <= float(grid.min()) + 1e-6


def test_three_heads_with_a_claim_far_from_the_truth():
    y = torch.randn(200, 1).double()
    heads = {
        n: torch.cat([y + torch.randn(200, 1).double(), torch.full((200, 1), -4.0).double()], 1)
        for n in ("joint", "a", "v")
    }
    found = ProductOfHeads(["a", "v"], task="regression").fit(heads, y)
    pooled = sum(x[:, :1] for x in heads.values()) / 3
    best = 0.5 * (LOG_2PI + float((y - pooled).square().mean().log()) + 1)
    assert found.after <= best + 1e-6


@pytest.mark.parametrize("factor", [1e-4, 0.01, 1.0, 100.0])
def test_cosines_are_calibrated_as_well_as_logits(factor):
    y = torch.randint(10, (500,))
    cosines = (0.2 + 0.01 * torch.randn(500, 10) + 0.02 * nn.functional.one_hot(y, 10)).double()
    grid = min(float(nn.functional.cross_entropy(w * cosines, y)) for w in torch.logspace(1, 3, 400))
    found = fit_temperature(passing(["image"]), {"image": factor * cosines}, y)
    assert found.after <= grid + 1e-6


@pytest.mark.parametrize("task", TASKS)
def test_without_a_mistake_exponents_are_finite_in_any_unit(task):
    outputs, y = sample(task, 0, items=100)
    truth = {"classification": nn.functional.one_hot(y.long(), 3).double() if task == "classification" else None}.get(
        task
    )
    truth = 2 * y - 1 if task == "multilabel" else y if task == "regression" else truth
    perfect = torch.cat([truth, torch.zeros_like(truth)], 1) if task == "regression" else truth
    outputs["a"] = perfect
    for shrinkage in (0.0, 0.1, math.inf):
        found = exponents(task, {"a": perfect, "b": outputs["b"]}, y, shrinkage)
        small = exponents(task, scaled(task, {"a": perfect, "b": outputs["b"]}, 1e-3), y, shrinkage)
        assert all(math.isfinite(w) for w in found.values())
        assert {n: 1e-3 * w for n, w in small.items()} == pytest.approx(found, rel=1e-3, abs=1e-5)
    alone = fit_temperature(passing(["a"], task=task), {"a": perfect}, y)
    assert math.isfinite(alone.exponents["a"])
    if task == "classification":  # one unknown label in a hundred, over three classes
        sure = perfect[0].mul(alone.exponents["a"]).softmax(0).max()
        assert float(sure) == pytest.approx(1 - 2 / 300, abs=1e-6)


def test_an_expert_that_misleads_is_nearly_silenced_and_the_temperature_stays_finite():
    y = torch.arange(90) % 3
    wrong = {"a": 2.0 * nn.functional.one_hot((y + 1) % 3, 3)}
    product = passing(["a"])
    found = fit_temperature(product, wrong, y)
    assert product.temperature.isfinite()
    assert found.after == pytest.approx(math.log(3), abs=1e-4)
    assert exponents("classification", {"a": wrong["a"], "b": wrong["a"]}, y, 0.1) == {"a": 0.0, "b": 0.0}


def test_what_says_nothing_keeps_its_exponent():
    y = torch.arange(30) % 3
    assert fit_temperature(passing(["a"]), {"a": torch.zeros(30, 3)}, y).exponents == {"a": 1.0}


def test_heads_with_tiny_exponents_are_not_lifted_without_the_joint_one():
    """The floor is a share of the largest exponent, not a number."""
    y = torch.randn(200, 1).double()
    heads = {
        n: torch.cat([y + torch.randn(200, 1).double(), torch.full((200, 1), -14.0).double()], 1)
        for n in ("joint", "a", "v")
    }
    product = ProductOfHeads(["a", "v"], task="regression")
    product.fit(heads, y)
    assert product.without_joint.weights.max() < 1e-5
    assert product.without_joint.losses({n: heads[n] for n in "av"}, y)["joint"] < 2


def model(function):
    """The function with its slope and curvature, by autograd."""

    def at(point):
        with torch.enable_grad():
            x = point.detach().requires_grad_()
            value = function(x)
            (slope,) = torch.autograd.grad(value, x, create_graph=True)
            if not slope.requires_grad:  # a linear function
                return _convex.Model(float(value.detach()), slope, point.new_zeros(point.shape + point.shape))
            rows = [torch.autograd.grad(s, x, retain_graph=True)[0] for s in slope.reshape(-1)]
        curvature = torch.stack(rows).reshape(point.shape + point.shape)
        return _convex.Model(float(value.detach()), slope.detach(), curvature)

    return at


class TestMinimum:
    def test_a_corner(self):
        found = _convex.minimise(
            model(lambda w: (w - torch.tensor([-1.0, 2.0, 0.0]).double()).square().sum()), torch.ones(3).double()
        )
        torch.testing.assert_close(found, torch.tensor([0.0, 2.0, 0.0]).double())

    @pytest.mark.parametrize("start", [1e-6, 1.0, 1e6])
    @pytest.mark.parametrize("best", [1e-12, 1.0, 1e12])
    def test_any_size(self, start, best):
        found = _convex.minimise_scalar(model(lambda w: w / best - w.log()), start)
        assert found == pytest.approx(best, rel=1e-5)

    def test_where_newton_fails_coordinates_take_over(self, monkeypatch):
        monkeypatch.setattr(_convex, "_descended", lambda *_: None)
        target = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
        found = _convex.minimise(model(lambda w: 0.5 * w @ target @ w - w.sum()), torch.tensor([5.0, 5.0]).double())
        torch.testing.assert_close(found, torch.linalg.solve(target, torch.ones(2).double()), rtol=1e-3, atol=0)

    def test_what_has_no_minimum_is_refused_by_name(self):
        with pytest.raises(RuntimeError, match=r"did not reach a minimum: .* nats are left"):
            _convex.minimise_scalar(model(lambda w: -w), 1.0)
        with pytest.raises(RuntimeError, match="did not reach a minimum"):
            _convex.minimise(model(lambda w: -w.sum() + w.square().sum() * 0), torch.ones(2).double())
