"""Refitted heads: the best of their class, whatever the scale and the width of the latent."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="heads are scikit-learn's; pip install 'balanced-grad[demo]'")

from balanced_grad.heads import LEAST_PROBABILITY, PENALTIES, refit, require_items_per_class


def classes(items, width, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(items, width))
    return x, (x[:, :3] + noise * rng.normal(size=(items, 3))).argmax(1)


def risk(kind, fit, test, *, classification=True):
    return refit(kind, *fit, classification=classification, seed=0).losses(*test).mean()


def test_linear_regression_reaches_the_noise_and_exact_targets_exactly():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2000, 5)), np.arange(1.0, 6.0)
    noise = 0.5 * rng.normal(size=2000)
    for target, expected in ((x @ weight + noise, 0.25), (100 + x @ weight, 0.0)):
        pair = (x[:1000], target[:1000]), (x[1000:], target[1000:])
        assert risk("linear", *pair, classification=False) == pytest.approx(expected, rel=0.1, abs=1e-6)


def test_squared_error_is_the_mean_over_outputs():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 2)), rng.normal(size=(600, 2)) * [1.0, 3.0]
    losses = refit("linear", x, y, classification=False, seed=0).losses(x, y)
    assert losses.shape == (600,)
    assert losses.mean() == pytest.approx(5.0, rel=0.1)  # of variances 1 and 9


def test_nothing_to_see_gives_the_class_frequencies():
    targets = np.repeat([0, 1, 4], [60, 30, 10])  # labels need not be consecutive
    head = refit("linear", np.zeros((100, 1)), targets, classification=True, seed=0)
    frequencies = np.array([0.6, 0.3, 0.1])
    expected = -(frequencies * np.log(frequencies)).sum()
    assert head.losses(np.zeros((100, 1)), targets).mean() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_scale_shift_and_dead_features_do_not_matter(kind):
    x, y = classes(400, 3)
    scaled = np.hstack([x * [1e-4, 1.0, 1e4] + [5.0, -5.0, 0.0], np.full((400, 2), 7.0)])
    plain, moved = (risk(kind, (z[:300], y[:300]), (z[300:], y[300:])) for z in (x, scaled))
    assert moved == pytest.approx(plain, rel=1e-3 if kind == "linear" else 0.2)


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-13, 1e-6, 1.0, 1e13, 1e160, 1e300])
@pytest.mark.parametrize("shift", [0.0, 1.0, -100.0])  # in units of the feature
def test_a_unit_of_the_features_changes_nothing(scale, shift):
    x, y = classes(400, 3)
    moved = scale * (x + shift)
    plain, other = (
        refit("linear", z[:300], y[:300], classification=True, seed=0).losses(z[300:], y[300:]) for z in (x, moved)
    )
    np.testing.assert_allclose(other, plain, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-100, 1e-13, 1e-6, 1e6, 1e100])
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_unit_of_the_targets_is_squared_in_the_risk(kind, scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    y = x @ [1.0, 2.0] + 0.5 * rng.normal(size=300)
    plain, other = (
        risk(kind, (x[:200], s * y[:200]), (x[200:], s * y[200:]), classification=False) for s in (1, scale)
    )
    assert other / scale**2 == pytest.approx(plain, rel=1e-6 if kind == "linear" else 0.3)


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1, 1e-13, -1e13])
def test_a_feature_that_never_varies_says_nothing(constant):
    x, y = classes(400, 3)
    dead = np.hstack([x, np.full((400, 1), constant)])
    plain, other = (
        refit("linear", z[:300], y[:300], classification=True, seed=0).losses(z[300:], y[300:]) for z in (x, dead)
    )
    np.testing.assert_allclose(other, plain, rtol=1e-6)


def test_a_wide_latent_of_noise_gets_a_strong_penalty_and_does_little_harm():
    x, y = classes(1300, 3)
    wide = np.hstack([x, np.random.default_rng(9).normal(size=(1300, 150))])
    narrow_head, wide_head = (refit("linear", z[:300], y[:300], classification=True, seed=0) for z in (x, wide))
    free = refit_with(wide[:300], y[:300], min(PENALTIES)).losses(wide[300:], y[300:]).mean()
    assert wide_head.penalty > narrow_head.penalty
    assert wide_head.losses(wide[300:], y[300:]).mean() < 0.5 * free


def refit_with(features, targets, penalty):
    """The head without a choice of penalty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balanced_grad.heads.PENALTIES", (penalty,))
        return refit("linear", features, targets, classification=True, seed=0)


def test_only_the_mlp_sees_exclusive_or():
    x = np.random.default_rng(0).normal(size=(900, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    linear, mlp = (risk(kind, (x[:600], y[:600]), (x[600:], y[600:])) for kind in ("linear", "mlp"))
    assert linear > 0.6  # a coin costs 0.69
    assert mlp < 0.2


def test_the_loss_of_a_confident_error_is_bounded():
    x = np.concatenate([-np.ones(30), np.ones(30)])[:, None]
    head = refit("linear", x, (x[:, 0] > 0).astype(int), classification=True, seed=0)
    assert head.losses(np.array([[-1e9]]), np.array([1])) == pytest.approx(-np.log(LEAST_PROBABILITY))


def test_a_rare_class_is_named():
    require_items_per_class(np.array([0] * 5 + [7] * 3), np.array([0, 7]))
    with pytest.raises(ValueError, match=r"\{7: 2\}"):
        require_items_per_class(np.array([0] * 5 + [7] * 2), np.array([0, 7]))
