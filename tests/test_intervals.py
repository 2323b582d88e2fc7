"""The paired bootstrap against scipy's, with the same generator, and what runs add to it."""

import numpy as np
import pytest
from scipy.stats import bootstrap, t

from balanced_grad.intervals import BATCH, PairedBootstrap, bounds


@pytest.mark.parametrize("items", [7, 300])
def test_draws_are_those_of_scipy(items):
    rows = np.random.default_rng(1).normal(size=(3, items))
    options = {"vectorized": True, "n_resamples": 500, "batch": 500, "method": "percentile"}
    theirs = bootstrap((rows,), np.mean, axis=-1, random_state=np.random.default_rng(0), **options)
    found = PairedBootstrap(items, 500).means(rows)
    np.testing.assert_allclose(found, theirs.bootstrap_distribution, atol=1e-12)
    for mine, low, high in zip(found, *theirs.confidence_interval, strict=True):
        assert bounds(mine, 0.95) == pytest.approx((low, high))


def test_batches_change_nothing(monkeypatch):
    rows = np.random.default_rng(1).normal(size=(2, 50))
    whole = PairedBootstrap(50, 300).means(rows)
    monkeypatch.setattr("balanced_grad.intervals.BATCH", 50 * 70)
    np.testing.assert_allclose(PairedBootstrap(50, 300).means(rows), whole, atol=1e-12)
    assert BATCH > 50 * 300


def test_equal_rows_differ_by_nothing_and_constants_have_no_spread():
    row = np.random.default_rng(1).normal(size=40)
    resampled = PairedBootstrap(40, 200)
    assert (resampled.means(row) == resampled.means(row)).all()
    np.testing.assert_allclose(resampled.means(np.full(40, 3.0)), 3.0)


def test_runs_add_students_t():
    flat = np.ones((1, 30))
    resampled = PairedBootstrap(30, 20_000, runs=4)
    low, high = bounds(resampled.means(flat, np.array([0.5]))[0], 0.95)
    half = t.ppf(0.975, 3) * 0.5 / 2
    assert (1 - low, high - 1) == (pytest.approx(half, rel=0.06), pytest.approx(half, rel=0.06))
    assert np.ptp(resampled.means(flat)) < 1e-12


def test_groups_of_one_item_are_the_items_but_for_the_stretch():
    row = np.random.default_rng(1).normal(size=2000)
    alone, grouped = (PairedBootstrap(2000, 4000, groups=codes).means(row) for codes in (None, np.arange(2000)))
    assert bounds(grouped, 0.95) == pytest.approx(bounds(alone, 0.95), abs=0.002)


def test_means_of_groups_are_over_their_items():
    """Rows that only differ between groups: every draw lies between the extremes before it is stretched."""
    codes = np.repeat(np.arange(40), np.arange(1, 41))
    rows = np.stack([np.ones(len(codes)), codes.astype(float)])
    constant, varied = PairedBootstrap(len(codes), 4000, groups=codes).means(rows)
    np.testing.assert_allclose(constant, 1.0)
    assert np.median(varied) == pytest.approx(codes.mean(), abs=0.5)
    assert np.median(varied) > np.arange(40).mean() + 5  # not the mean of the groups, of which the large count more


@pytest.mark.parametrize("count", [2, 5, 30])
def test_intervals_over_groups_cover_where_those_over_items_do_not(count):
    """Nominal 5 % of misses; items that share an effect of their group, resampled one by one, miss in some 45 %."""
    generator = np.random.default_rng(0)
    missed = np.zeros(2)
    for _ in range(150):
        codes = np.repeat(np.arange(count), generator.integers(5, 15, count))
        row = generator.normal(size=count)[codes] + generator.normal(size=len(codes))
        for index, groups in enumerate((codes, None)):
            low, high = bounds(PairedBootstrap(len(row), 400, groups=groups).means(row), 0.95)
            missed[index] += not low <= 0 <= high
    assert missed[0] <= 18
    assert missed[1] > 45
