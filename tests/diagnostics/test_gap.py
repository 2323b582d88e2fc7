"""The interval of a difference of risks: paired, as wide as the seeds say, and a verdict that follows from it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from balanced_grad.diagnostics import paired_gap


def test_one_run_agrees_with_the_normal_interval_of_the_paired_differences():
    rng = np.random.default_rng(0)
    hard = rng.exponential(5.0, size=800)
    difference = rng.normal(0.1, 1.0, size=800)
    gap = paired_gap(hard + difference, hard, confidence=0.9)
    half = stats.norm.ppf(0.95) * difference.std() / np.sqrt(800)  # the spread of `hard` does not matter
    assert gap.value == pytest.approx(difference.mean())
    assert gap.low == pytest.approx(difference.mean() - half, abs=0.1 * half)
    assert gap.high == pytest.approx(difference.mean() + half, abs=0.1 * half)


def test_seeds_widen_the_interval_by_students_t():
    offsets = np.array([-0.3, 0.0, 0.3])  # no spread over the items: only the seeds are left
    losses = np.ones((3, 50)) + offsets[:, None]
    gap = paired_gap(losses, np.ones((3, 50)), resamples=20_000)
    half = stats.t.ppf(0.975, 2) * 0.3 / np.sqrt(3)
    assert gap.seeds == pytest.approx(offsets)
    assert gap.high == pytest.approx(half, rel=0.08)
    assert gap.low == pytest.approx(-half, rel=0.08)


def test_intervals_cover_where_seeds_and_items_both_vary():
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        losses = 0.1 * rng.normal(size=(3, 1)) + rng.normal(size=(1, 100)) + 0.3 * rng.normal(size=(3, 100))
        gap = paired_gap(losses, np.zeros_like(losses), resamples=500)
        missed += gap.verdict != "inconclusive"
    assert missed <= 16  # of 200 at a nominal 5 %; without the seeds' part it is about 40


def test_a_latent_is_no_better_than_itself():
    losses = np.random.default_rng(0).normal(size=(3, 40))
    gap = paired_gap(losses, losses)
    assert (gap.value, gap.low, gap.high, gap.verdict) == (0.0, 0.0, 0.0, "inconclusive")


@given(st.floats(-2, 2), st.integers(0, 99), st.floats(0, 1))
def test_verdict_follows_from_the_interval_and_turns_with_the_sign(shift, seed, tolerance):
    a, b = np.random.default_rng(seed).normal(size=(2, 30))
    gap, turned = (paired_gap(*pair, tolerance=tolerance, resamples=200) for pair in ((a + shift, b), (b, a + shift)))
    assert gap.low <= gap.high
    assert (gap.verdict == "helps") == (gap.high < -tolerance)
    assert (gap.verdict == "hurts") == (gap.low > tolerance)
    assert {"helps": "hurts", "hurts": "helps"}.get(gap.verdict, gap.verdict) == turned.verdict
    assert turned.low == pytest.approx(-gap.high, abs=1e-9)


@given(st.integers(0, 99), st.permutations("abcdef"))
def test_groups_change_the_interval_and_not_the_value_and_their_names_mean_nothing(seed, names):
    generator = np.random.default_rng(seed)
    member, order = generator.integers(0, 6, 60), generator.permutation(60)
    member[:6] = range(6)
    a, b = generator.normal(size=(2, 3, 60))
    first, named, moved = (
        paired_gap(x, y, groups=groups, resamples=200)
        for x, y, groups in ((a, b, member), (a, b, np.sort(names)[member]), (a[:, order], b[:, order], member[order]))
    )
    assert first == named
    assert first.value == pytest.approx(paired_gap(a, b, resamples=200).value)
    assert (moved.low, moved.high) == (pytest.approx(first.low), pytest.approx(first.high))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(5), np.ones(6)), {}, "alike"),
        ((np.ones(1), np.ones(1)), {}, "N >= 2"),
        ((np.ones((2, 2, 2)), np.ones((2, 2, 2))), {}, "alike"),
        ((np.array([1.0, np.nan]), np.ones(2)), {}, "finite"),
        ((np.ones(5), np.ones(5)), {"confidence": 95}, "between 0 and 1"),
        ((np.ones(5), np.ones(5)), {"tolerance": -1.0}, ">= 0"),
        ((np.ones(5), np.ones(5)), {"resamples": 10}, "at least 100"),
        ((np.ones(5), np.ones(5)), {"groups": [0, 1]}, r"one label per item, \(5,\); got \(2,\)"),
        ((np.ones(2), np.ones(2)), {"groups": ["Ann", "Ann"]}, "of one group, .*Ann.*: .*two groups"),
    ],
)
def test_refusals(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        paired_gap(*arguments, **options)
