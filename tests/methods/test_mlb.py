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


def test_bad_settings():
    with pytest.raises(ValueError, match=r"cap=0.5: give a number >= 1"):
        bg.MLB({"audio": nn.Linear(1, 1)}, cap=0.5)
