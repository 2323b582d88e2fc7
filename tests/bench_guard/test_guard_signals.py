"""Every signal's formula, on losses and gradients made by hand."""

import statistics

import pytest
import torch

from bench.guard._average import Average
from bench.guard._signals import WARM_UP, Agreement, Blending, Check, Cosine, Credit, Marginal


def losses(**train_and_held_out):
    """A check that has losses only."""
    train, held_out = ({m: torch.tensor(x[i]) for m, x in train_and_held_out.items()} for i in (0, 1))
    return Check(dict.fromkeys(train_and_held_out, ()), train, held_out)


def gradients(own, joint, where=(0.0, 0.0)):
    """A check with one modality at ``where``, whose own loss has the gradient ``own`` and the joint one ``joint``."""
    w = torch.tensor(where, requires_grad=True)
    slope = {"own": torch.tensor(own), "joint": torch.tensor(joint)}
    return Check({"a": [w]}, {"a": w @ slope["own"]}, {"joint": w @ slope["joint"]})


def test_average_is_the_weighted_mean_of_what_it_saw():
    average, seen = Average(0.5), [1.0, 5.0, 2.0]
    assert (average.mean, average.error) == (0.0, 0.0)
    for x in seen:
        average.add(x)
    weights = [0.25, 0.5, 1.0]
    assert average.mean == pytest.approx(sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights))


def test_error_of_an_average_is_the_deviation_over_what_it_averages():
    average = Average(0.9)
    for i in range(400):
        average.add(3.0 + (-1) ** i)
    assert average.error == pytest.approx((0.1 / 1.9) ** 0.5, rel=1e-2)  # deviation 1, variance times (1-d)/(1+d)
    alone = Average(0.9)
    alone.add(7.0)
    assert alone.error == 0


def test_blending_is_gain_over_the_opened_gap_squared():
    signal = Blending()
    signal.check(losses(a=(2.0, 2.0), b=(2.0, 2.0), c=(2.0, 2.0)))
    assert signal.factors == {"a": 1.0, "b": 1.0, "c": 1.0}
    signal.check(losses(a=(0.1, 1.05), b=(0.1, 1.81), c=(0.1, 2.5)))
    # a: fell 0.95, gap 0.95; b: fell 0.19, gap 1.71. That averages show a part of it cancels in the ratio of each.
    assert signal.factors == pytest.approx({"a": 1.0, "b": 0.19 / 1.71**2 / (0.95 / 0.95**2), "c": 0.0})


def test_blending_keeps_a_gap_that_closes_from_dividing_by_zero():
    signal = Blending()
    for check in (losses(a=(2.0, 2.0), b=(2.0, 2.0)), losses(a=(1.0, 0.5), b=(1.0, 1.0))):
        signal.check(check)
    assert signal.factors == pytest.approx({"a": 1.0, "b": 1 / 1.5})  # both gaps count as 1e-3


def test_marginal_compares_recent_gains():
    signal = Marginal()
    slow_t, fast_t, slow_h, fast_h = Average(0.98), Average(), Average(0.98), Average()
    signal.check(losses(a=(2.0, 2.0)))
    signal.check(losses(a=(1.0, 1.5)))
    for average, seen in ((slow_t, (2, 1)), (fast_t, (2, 1)), (slow_h, (2, 1.5)), (fast_h, (2, 1.5))):
        for x in seen:
            average.add(x)
    ratio = (slow_h.mean - fast_h.mean) / (slow_t.mean - fast_t.mean)
    assert ratio == pytest.approx(0.5)
    assert signal.factors == pytest.approx({"a": 0.9 + 0.1 * 0.5})


@pytest.mark.parametrize(("held_out", "limit"), [(1.0, 1.0), (3.0, 0.0)], ids=["falls", "rises"])
def test_marginal_follows_what_happens_now(held_out, limit):
    signal = Marginal()
    for i in range(100):
        signal.check(losses(a=(2.0 - 0.02 * i, 2.0 + (held_out - 2.0) * 0.01 * i)))
    assert signal.factors["a"] == pytest.approx({1.0: 0.5, 0.0: 0.0}[limit], abs=0.06)


def test_marginal_does_not_judge_without_a_gain():
    signal = Marginal()
    for i in range(30):
        signal.check(losses(a=(2.0, 2.0 + i)))
    assert signal.factors == {"a": 1.0}


@pytest.mark.parametrize(
    ("own", "joint", "factor"),
    [([1.0, 0.0], [3.0, 0.0], 1.0), ([1.0, 0.0], [1.0, 1.0], 0.5**0.5), ([1.0, 0.0], [-1.0, 2.0], 0.0)],
)
def test_cosine(own, joint, factor):
    signal = Cosine()
    signal.check(gradients(own, joint))
    assert signal.factors == pytest.approx({"a": factor})


def test_cosine_is_averaged_before_it_is_cut():
    signal = Cosine()
    signal.check(gradients([1.0, 0.0], [-1.0, 0.0]))
    signal.check(gradients([1.0, 0.0], [1.0, 0.0]))
    assert signal.factors == pytest.approx({"a": 1 / 19})  # (1 - 0.9) / (1 + 0.9)


@pytest.mark.parametrize(
    ("products", "factor"),
    [([1.0], 1.0), ([-1.0], 0.0), ([-1.0, 1.1], 1.0), ([-1.0, 0.2], 0.0)],
    ids=["helps", "harms", "noise", "harms for sure"],
)
def test_agreement_waits_for_two_standard_errors(products, factor):
    signal = Agreement()
    for i in range(3 * WARM_UP):
        signal.check(gradients([1.0, 0.0], [products[i % len(products)], 5.0]))
        if i < WARM_UP:
            assert signal.factors == {"a": 1.0}
    assert signal.factors == {"a": factor}


def test_credit_is_the_fall_of_a_quadratic_loss_exactly():
    """The trapezoid rule is exact to second order."""
    signal, path = Credit(), torch.tensor([[3.0, -1.0], [2.0, 1.0], [0.5, 0.0], [0.0, 2.0]])
    held_out = []
    for where in path:
        w = where.clone().requires_grad_()
        held_out.append(w @ torch.tensor([[2.0, 0.3], [0.3, 1.0]]) @ w / 2)
        signal.check(Check({"a": [w]}, {}, {"joint": held_out[-1]}))
    assert signal.total["a"] == pytest.approx((held_out[0] - held_out[-1]).item(), rel=1e-5)
    assert signal.scales == {"a": 1.0}


@pytest.mark.parametrize("direction", [1.0, -1.0], ids=["helps", "harms"])
def test_credit_slows_an_encoder_whose_movement_harms(direction):
    signal, scales = Credit(), []
    for i in range(3 * WARM_UP):
        signal.check(gradients([0.0, 0.0], [-direction, 0.0], where=(0.1 * i, 0.0)))
        scales.append(signal.scales["a"])
    assert scales[:WARM_UP] == [1.0] * WARM_UP
    slowed = 0.8 ** (2 * WARM_UP)
    assert scales[-1] == pytest.approx(1.0 if direction > 0 else slowed)
    for i in range(200):  # and it comes back
        signal.check(gradients([0.0, 0.0], [-1.0, 0.0], where=(3.0 + 0.1 * i, 0.0)))
    assert signal.scales == {"a": 1.0}


def test_credit_is_noise_until_it_is_clear():
    signal = Credit()
    for i in range(100):
        signal.check(gradients([0.0, 0.0], [(-1.0) ** (i // 2), 0.0], where=(0.1 * i, 0.0)))
    assert statistics.fmean(signal.scales.values()) > 0.8
