import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import balanced_grad as bg

positive = st.floats(0.01, 1.0)


def coefficients(balancer, *scores):
    names = balancer.modalities.names
    balancer({"joint": torch.zeros((), requires_grad=True)}, scores=dict(zip(names, scores, strict=True)))
    return [k.item() for k in balancer.last.coefficients.values()]


def ogm(count=2, alpha=0.3, **options):
    options = {"noise": 0.0} | options
    return bg.OGM({f"m{index}": nn.Linear(1, 1) for index in range(count)}, alpha, **options)


@given(positive, positive, st.floats(0, 2))
def test_original_is_the_published_rule(a, b, alpha):
    found = coefficients(ogm(alpha=alpha, variant="original"), a, b)
    a, b = torch.tensor([a, b]).tolist()  # as float32 sees them
    ahead = max(a, b) / min(a, b)
    slowed = 1 - math.tanh(alpha * ahead)
    wanted = [slowed if a > b else 1, slowed if b > a else 1]
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("alpha", "jump"), [(0.1, 0.90), (0.3, 0.71), (0.5, 0.54), (0.8, 0.34)])
def test_original_jumps_at_balance_and_continuous_does_not(alpha, jump):
    ahead = (0.5 + 1e-6, 0.5)
    assert coefficients(ogm(alpha=alpha, variant="original"), *ahead) == pytest.approx([jump, 1], abs=5e-3)
    assert coefficients(ogm(alpha=alpha), *ahead) == pytest.approx([1, 1], abs=1e-5)


@given(st.lists(positive, min_size=2, max_size=5), st.floats(0, 2))
def test_only_those_ahead_of_the_others_are_slowed(scores, alpha):
    continuous, original = (
        coefficients(ogm(len(scores), alpha, variant=variant), *scores) for variant in ("continuous", "original")
    )
    for index, score in enumerate(torch.tensor(scores).tolist()):
        others = scores[:index] + scores[index + 1 :]
        ratio = score / (sum(others) / len(others))
        if ratio < 1 - 1e-6:
            assert continuous[index] == original[index] == 1
        assert 0 <= original[index] <= continuous[index] <= 1


def test_a_score_of_zero_is_defined():
    assert coefficients(ogm(alpha=0.5), 0.5, 0.0) == [0, 1]
    assert coefficients(ogm(alpha=0.5), 0.0, 0.0) == [1, 1]
    assert coefficients(ogm(alpha=0.5), math.inf, 0.3) == [0, 1]
    with pytest.warns(bg.InactiveBalancerWarning, match="the score of 'm0' is NaN"):
        assert coefficients(ogm(alpha=0.5), math.nan, 0.3) == [1, 1]


def gradients(balancer, parameters, gradient):
    for p in parameters.values():
        p.grad = None
    loss = sum((p * g).sum() for p, g in zip(parameters.values(), gradient, strict=True))
    balancer({"joint": loss}, scores={"audio": 0.9, "video": 0.3}).backward()
    return [p.grad for p in parameters.values()]


def test_noise_has_the_spread_of_the_unscaled_gradient():
    parameters = {m: nn.Parameter(torch.zeros(200, 300)) for m in ("audio", "video")}
    gradient = [3 * torch.randn(200, 300) + 1, torch.randn(200, 300)]
    quiet = gradients(bg.OGM(parameters, 0.5, noise=0.0), parameters, gradient)
    noisy = gradients(bg.OGM(parameters, 0.5, noise=2.0), parameters, gradient)
    for with_noise, without, given_gradient in zip(noisy, quiet, gradient, strict=True):
        noise = with_noise - without
        assert noise.std() == pytest.approx(2 * given_gradient.std().item(), rel=0.02)
        assert abs(noise.mean()) < 5 * noise.std() / math.sqrt(noise.numel())
        assert abs(torch.corrcoef(torch.stack([noise.flatten(), given_gradient.flatten()]))[0, 1]) < 0.02


def test_noise_does_not_touch_the_global_generator_and_resumes():
    parameters = {m: nn.Parameter(torch.zeros(4)) for m in ("audio", "video")}
    gradient = [torch.arange(4.0), torch.arange(4.0)]
    balancer, resumed = bg.OGM(parameters), bg.OGM(parameters, seed=7)
    before = torch.get_rng_state()
    first = gradients(balancer, parameters, gradient)
    assert torch.equal(torch.get_rng_state(), before)
    resumed.load_state_dict(balancer.state_dict())
    second = gradients(balancer, parameters, gradient)
    assert not torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(second, gradients(resumed, parameters, gradient), strict=True))


def test_no_noise_without_spread():
    parameters = {"audio": nn.Parameter(torch.zeros(1)), "video": nn.Parameter(torch.zeros(5))}
    found = gradients(bg.OGM(parameters, 0.0), parameters, [torch.ones(1), torch.ones(5)])
    assert [g.tolist() for g in found] == [[1.0], [1.0] * 5]


def test_the_seed_is_that_of_the_noise():
    parameters = {m: nn.Parameter(torch.zeros(4)) for m in ("audio", "video")}
    gradient = [torch.arange(4.0), torch.arange(4.0)]
    first, again, other = (gradients(bg.OGM(parameters, seed=seed), parameters, gradient)[0] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_loaded_state_says_what_is_drawn_next_whatever_was_drawn_before():
    parameters = {m: nn.Parameter(torch.zeros(4)) for m in ("audio", "video")}
    gradient = [torch.arange(4.0), torch.arange(4.0)]
    balancer, resumed = bg.OGM(parameters, seed=3), bg.OGM(parameters, seed=7)
    untouched = balancer.state_dict()
    gradients(resumed, parameters, gradient)
    resumed.load_state_dict(untouched)  # of one that has drawn nothing yet
    fresh = gradients(bg.OGM(parameters, seed=7), parameters, gradient)
    assert all(torch.equal(a, b) for a, b in zip(gradients(resumed, parameters, gradient), fresh, strict=True))


def test_sparse_gradients_are_scaled_and_get_noise_where_they_are():
    tables = {m: nn.Embedding(10, 3, sparse=True) for m in ("audio", "video")}
    rows = torch.tensor([1, 4, 4])
    balancer = bg.OGM(tables, 0.5)
    loss = sum(table(rows).square().sum() for table in tables.values())
    balancer({"joint": loss}, scores={"audio": 0.9, "video": 0.3}).backward()
    grad = tables["audio"].weight.grad
    assert grad.is_sparse
    assert grad.coalesce().indices().tolist() == [[1, 4]]
    quiet = 2 * tables["audio"].weight.detach()[[1, 4]] * torch.tensor([[1.0], [2.0]])
    assert not torch.allclose(grad.coalesce().values(), quiet * balancer.last.coefficients["audio"])


def test_bad_settings():
    encoders = {"audio": nn.Linear(1, 1)}
    with pytest.raises(ValueError, match="variant='smooth'"):
        bg.OGM(encoders, variant="smooth")
    with pytest.raises(ValueError, match="noise=-1"):
        bg.OGM(encoders, noise=-1)
