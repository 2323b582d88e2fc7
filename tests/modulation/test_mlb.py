import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import balanced_grad as bg

positive = st.floats(0.01, 1.0)


def coefficients(alpha, scores, **options):
    names = [f"m{index}" for index in range(len(scores))]
    balancer = bg.MLB({name: nn.Linear(1, 1) for name in names}, alpha, **options)
    balancer({"joint": torch.zeros((), requires_grad=True)}, scores=dict(zip(names, scores, strict=True)))
    return [k.item() for k in balancer.last.coefficients.values()]


@given(positive, positive, st.floats(0, 2), st.floats(1, 4))
def test_two_modalities_are_the_published_rule(a, b, alpha, cap):
    def rule(ratio):
        return 1 + (cap - 1 if ratio > 1 else 1) * math.tanh(alpha * (ratio - 1))

    assert coefficients(alpha, (a, b), cap=cap) == pytest.approx([rule(b / a), rule(a / b)], abs=1e-4)


@given(st.lists(positive, min_size=2, max_size=5), st.floats(0.1, 2))
def test_continuous_bounded_and_ordered(scores, alpha):
    found = coefficients(alpha, scores, cap=3.0)
    assert all(0 <= k <= 3 for k in found)
    by_score = [k for _, k in sorted(zip(torch.tensor(scores).tolist(), found, strict=True))]
    assert all(worse >= better - 1e-5 for worse, better in pairwise(by_score))
    assert coefficients(alpha, [scores[0]] * 3) == [1, 1, 1]


def test_the_default_cap_is_the_plain_tanh():
    assert coefficients(0.5, (0.4, 0.8)) == pytest.approx([1 + math.tanh(0.5), 1 + math.tanh(0.5 * -0.5)])


def test_a_modality_without_any_success_gets_the_cap():
    assert coefficients(0.5, (0.0, 0.5), cap=1.5) == pytest.approx([1.5, 1 - math.tanh(0.5)])


def test_regression_by_reciprocal_errors():
    target = torch.zeros(4)
    predicted = {"m0": target + 2, "m1": target + 1}  # m0 has four times the error: it lags
    scores = bg.scores(predicted, target, "regression")
    lagging, leading = coefficients(0.1, tuple(scores.values()))
    assert (lagging, leading) == pytest.approx((1 + math.tanh(0.3), 1 + math.tanh(0.1 * (0.25 - 1))))


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_regression_compares_errors_as_the_release_does(scale):
    errors = [1.0, 4.0, 16.0]
    found = coefficients(0.8, [1 / (scale * error) for error in errors], task="regression")
    rest = [sum(errors) - error for error in errors]
    ratios = [2 * error / other for error, other in zip(errors, rest, strict=True)]
    assert found == pytest.approx([1 + math.tanh(0.8 * (ratio - 1)) for ratio in ratios], abs=1e-4)
    assert found == pytest.approx([0.383, 0.600, 2.0], abs=1e-3)


@given(positive, positive, st.floats(0, 2))
def test_for_two_modalities_both_tasks_are_the_same(a, b, alpha):
    assert coefficients(alpha, (a, b), task="regression") == pytest.approx(coefficients(alpha, (a, b)), abs=1e-4)


def test_regression_losses_are_the_errors_and_are_averaged_as_such():
    """As one large batch: by the mean error of two halves, given as losses or as scores."""
    encoders = {name: nn.Linear(1, 1) for name in ("a", "b", "c")}
    halves = [dict(zip(encoders, errors, strict=True)) for errors in ((1.0, 2.0, 3.0), (5.0, 1.0, 9.0))]
    seen = []
    for as_scores in (False, True):
        balancer = bg.MLB(encoders, task="regression", target="update")
        balancer.resolve_target(True)
        for errors in halves:
            zero = encoders["a"].weight.sum() * 0
            losses = {"joint": zero} | ({} if as_scores else {name: zero + error for name, error in errors.items()})
            balancer(losses, scores={name: 1 / error for name, error in errors.items()} if as_scores else None)
        seen.append([k.item() for k in balancer.update_scales().values()])
    whole = coefficients(0.8, [1 / 3.0, 1 / 1.5, 1 / 6.0], task="regression")
    assert seen[0] == pytest.approx(whole, abs=1e-5)
    assert seen[1] == pytest.approx(whole, abs=1e-5)


def test_an_error_is_not_negative():
    balancer = bg.MLB({name: nn.Linear(1, 1) for name in ("a", "b")}, task="regression")
    zero = torch.zeros((), requires_grad=True)
    with pytest.raises(ValueError, match="task='regression' they are taken for errors"):
        balancer({"joint": zero, "a": zero - 1, "b": zero + 1})


def test_the_default_alpha_is_that_of_the_release():
    balancer = bg.MLB({name: nn.Linear(1, 1) for name in ("a", "b")})
    balancer({"joint": torch.zeros((), requires_grad=True)}, scores={"a": 0.5, "b": 0.25})
    ahead, behind = balancer.last.to_dict()["coefficients"].values()
    assert (ahead, behind) == pytest.approx((1 - math.tanh(0.4), 1 + math.tanh(0.8)))


def test_bad_settings():
    with pytest.raises(ValueError, match=r"cap=0.5: give a number >= 1"):
        bg.MLB({"audio": nn.Linear(1, 1)}, cap=0.5)
    with pytest.raises(ValueError, match="task='multilabel': choose one of"):
        bg.MLB({"audio": nn.Linear(1, 1)}, task="multilabel")


def test_the_task_is_that_of_the_scores():
    """Three errors of 1, 4 and 16 by the released rule; as probabilities the middle one would be sped up."""
    errors = {"a": 1.0, "b": 4.0, "c": 16.0}
    scores = bg.scores({m: torch.tensor([e**0.5]) for m, e in errors.items()}, torch.zeros(1), "regression")

    def found(scores, **options):
        balancer = bg.MLB({m: nn.Linear(1, 1) for m in errors}, **options)
        balancer({"joint": torch.zeros((), requires_grad=True)}, scores=scores)
        return list(balancer.last.to_dict()["coefficients"].values())

    assert found(scores) == found(dict(scores), task="regression") == pytest.approx([0.383, 0.600, 2.0], abs=1e-3)
    assert found(dict(scores)) == pytest.approx([0.412, 1.716, 2.0], abs=1e-3)
    assert found(scores, task="classification") == found(dict(scores)), "what is said wins"
