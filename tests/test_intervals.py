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
