"""Exponents fitted on validation items: the convex problem, and what it is for."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from balanced_grad.models import ProductOfExperts, fit_temperature, fit_weights

NAMES = ("audio", "video", "text")
quick = hypothesis.settings(deadline=None, max_examples=15)


def passing(names=NAMES, **options):
    return ProductOfExperts({name: nn.Identity() for name in names}, **options)


def sample(items=150, classes=3, noise=(1.0, 2.0, 4.0), seed=0, names=NAMES):
    """Logits that know the label up to a noise of their own, and labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(classes, (items,), generator=generator)
    truth = 2.0 * nn.functional.one_hot(label, classes)
    return {
        name: truth + spread * torch.randn(items, classes, generator=generator)
        for name, spread in zip(names, noise, strict=False)
    }, label


def nll(outputs, label, weights):
    return nn.functional.cross_entropy(sum(w * outputs[n].double() for n, w in weights.items()), label)


@quick
@hypothesis.given(
    seed=st.integers(0, 2**16), shrinkage=st.sampled_from([0.0, 0.01, 1.0]), scale=st.sampled_from([0.2, 1.0, 5.0])
)
def test_exponents_are_optimal(seed, shrinkage, scale):
    """Slope zero where the exponent is positive, not negative where it is zero."""
    outputs, label = sample(seed=seed)
    outputs = {name: scale * x for name, x in outputs.items()}
    found = fit_weights(passing(), outputs, label, shrinkage=shrinkage)
    alone = [fit_temperature(passing([name]), {name: x}, label) for name, x in outputs.items()]
    unit = next(iter(min(alone, key=lambda fit: fit.after).exponents.values()))
    point = torch.tensor(list(found.exponents.values()), dtype=torch.double, requires_grad=True)
    spread = 0.5 * shrinkage * ((point - point.mean()) / unit).square().sum()
    value = nll(outputs, label, dict(zip(NAMES, point, strict=True))) + spread
    (slope,) = torch.autograd.grad(value, point)
    free = point > 1e-6
    assert (point >= 0).all()
    assert slope[free].abs().max() < 1e-4
    assert (slope[~free] > -1e-4).all()


def test_the_product_is_left_with_the_exponents_found():
    outputs, label = sample()
    product = passing()
    product.temperature.fill_(3.0)
    found = fit_weights(product, outputs, label)
    torch.testing.assert_close(product.weights, torch.tensor(list(found.exponents.values())), check_dtype=False)
    assert product.temperature == 1
    torch.testing.assert_close(product.losses(outputs, label)["joint"].item(), found.after, atol=1e-5, rtol=0)
    torch.testing.assert_close(nll(outputs, label, dict.fromkeys(NAMES, 1 / 3)).item(), found.before)
    assert found.after <= found.before


def test_a_confident_expert_that_is_wrong_comes_out_at_zero():
    outputs, label = sample(400)
    generator = torch.Generator().manual_seed(1)
    guess = torch.randint(3, (400,), generator=generator)  # nothing is left of what it memorised
    outputs["text"] = 10.0 * nn.functional.one_hot(guess, 3)
    product = passing()
    found = fit_weights(product, outputs, label)
    assert found.exponents["text"] < 0.01
    assert min(found.exponents["audio"], found.exponents["video"]) > 0.1
    assert found.shrinkage < 1
    # On new items the product does as well as the two others alone, while the plain product is ruined.
    fresh, fresh_label = sample(2000, seed=5)
    fresh["text"] = 10.0 * nn.functional.one_hot(torch.randint(3, (2000,), generator=generator), 3)
    after = product.losses(fresh, fresh_label)["joint"]
    assert after < 0.5 * passing().losses(fresh, fresh_label)["joint"]


def test_infinite_shrinkage_is_one_temperature():
    outputs, label = sample()
    equal, warm = passing(), passing()
    found = fit_weights(equal, outputs, label, shrinkage=math.inf)
    fit_temperature(warm, outputs, label)
    assert max(found.exponents.values()) - min(found.exponents.values()) < 1e-9
    torch.testing.assert_close(equal.combine(outputs), warm.combine(outputs), atol=1e-4, rtol=0)
    assert torch.equal(warm.weights, torch.ones(3))


def test_much_shrinkage_is_nearly_equal_weights():
    outputs, label = sample()
    values = [list(fit_weights(passing(), outputs, label, shrinkage=s).exponents.values()) for s in (0.0, 0.1, 100.0)]
    spreads = [max(v) - min(v) for v in values]
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 0.05


def test_temperature_recovers_a_known_scale():
    generator = torch.Generator().manual_seed(0)
    calm = 1.5 * torch.randn(4000, 3, generator=generator)
    label = torch.multinomial(calm.softmax(1), 1, generator=generator)[:, 0]
    product = passing(["audio"])
    fit_temperature(product, {"audio": 4 * calm}, label)
    assert product.temperature.item() == pytest.approx(4.0, rel=0.1)


def test_copies_of_an_expert_share_its_weight():
    outputs, label = sample(noise=(1.0,), names=["audio"])
    copies = dict.fromkeys(NAMES, outputs["audio"])
    alone = fit_weights(passing(["audio"]), outputs, label, shrinkage=0.0)
    together = fit_weights(passing(), copies, label, shrinkage=0.0)
    assert sum(together.exponents.values()) == pytest.approx(alone.exponents["audio"], rel=0.05)


def test_weights_stay_finite_where_the_experts_make_no_mistake():
    label = torch.arange(300) % 3
    perfect = {name: 3.0 * nn.functional.one_hot(label, 3) for name in NAMES}
    found = fit_weights(passing(), perfect, label)
    assert max(found.exponents.values()) < 5


def test_is_deterministic_and_leaves_the_random_state():
    outputs, label = sample()
    before = torch.get_rng_state()
    first, second = (fit_weights(passing(), outputs, label) for _ in range(2))
    assert first == second
    assert torch.equal(before, torch.get_rng_state())


def test_shrinkage_is_as_large_as_one_standard_error_allows():
    """Nothing to choose between copies: one temperature. Much to choose where one expert only guesses: little."""
    outputs, label = sample(names=["audio"], noise=(1.0,))
    alike = fit_weights(passing(), dict.fromkeys(NAMES, outputs["audio"]), label)
    assert alike.shrinkage == math.inf
    unlike = fit_weights(passing(), *sample(noise=(1.0, 2.0, 40.0)))
    best = min(unlike.scores.values())
    assert unlike.shrinkage < math.inf
    assert unlike.scores[unlike.shrinkage] < best + 0.1 < unlike.scores[math.inf]


def test_absent_items_do_not_count_for_an_expert():
    outputs, label = sample(200)
    mask = torch.arange(200) % 4 > 0
    nobody = mask | (torch.arange(200) % 8 > 0)
    present = {"audio": mask, "video": nobody, "text": nobody}
    spoilt = {name: x.where(present[name][:, None], math.nan) for name, x in outputs.items()}
    some = fit_weights(passing(), spoilt, label, present, shrinkage=0.01)
    kept = {name: x[nobody] for name, x in outputs.items()}
    same = fit_weights(passing(), kept, label[nobody], {"audio": mask[nobody]}, shrinkage=0.01)
    assert list(some.exponents.values()) == pytest.approx(list(same.exponents.values()), abs=1e-6)


def test_an_expert_that_excludes_true_classes_loses_its_weight():
    outputs, label = sample()
    outputs["text"] = torch.zeros(150, 3).masked_fill(nn.functional.one_hot((label + 1) % 3, 3).bool(), -math.inf)
    outputs["text"][:60] = torch.zeros(60, 3).masked_fill(nn.functional.one_hot(label[:60], 3).bool(), -math.inf)
    assert fit_weights(passing(), outputs, label, shrinkage=0.0).exponents["text"] < 0.05


def test_multilabel():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(2, (300, 5), generator=generator).float()
    outputs = {
        "audio": 4 * targets - 2 + 2 * torch.randn(300, 5, generator=generator),
        "video": 9 * torch.randn(300, 5, generator=generator),
    }
    found = fit_weights(passing(["audio", "video"], task="multilabel"), outputs, targets)
    assert found.exponents["video"] < 0.05
    assert found.exponents["audio"] == pytest.approx(1.0, abs=0.2)  # ± 2 with deviation 2: logits 2 (± 2) / 2² · 2


def test_regression():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(400, 1, generator=generator)
    honest = torch.cat([targets + 0.5 * torch.randn(400, 1, generator=generator), torch.full((400, 1), -1.386)], 1)
    braggart = torch.cat([torch.randn(400, 1, generator=generator), torch.full((400, 1), -4.0)], 1)
    product = passing(["audio", "video"], task="regression")
    found = fit_weights(product, {"audio": honest, "video": braggart}, targets)
    assert found.exponents["audio"] == pytest.approx(1.0, abs=0.2)
    assert found.exponents["video"] < 0.02
    absent = {"audio": torch.arange(400) % 2 == 0}  # half of the items are left with the braggart
    found = fit_weights(product, {"audio": honest, "video": braggart}, targets, absent)
    assert 0 < found.exponents["video"] < 0.05
    assert math.isfinite(found.after)


def test_the_prior_counts_in_the_fit():
    label = torch.tensor([0] * 90 + [1] * 10)
    prior = torch.tensor([0.9, 0.1]).log()
    blind = {"audio": prior.expand(100, 2)}  # it repeats the prior, so nothing is left for it to say
    found = fit_weights(passing(["audio"], prior=prior, prior_weight=1.0), blind, label, shrinkage=0.0)
    assert found.exponents["audio"] < 0.1


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda o, y: fit_weights(passing(), o, y, shrinkage=-1.0), "number >= 0"),
        (lambda o, y: fit_weights(passing(), {"audio": o["audio"]}, y), "'video' has no output"),
        (lambda o, y: fit_weights(passing(), o | {"text": math.nan * o["text"]}, y), "'text' is not finite"),
        (lambda o, y: fit_weights(passing(), o, y[:-1]), "do not fit"),
        (lambda o, y: fit_weights(passing(), {n: x[:1] for n, x in o.items()}, y[:1]), "two items or more"),
        (
            lambda o, y: fit_weights(passing(), o, y, {n: torch.zeros(150, dtype=torch.bool) for n in NAMES}),
            "no validation item has an expert",
        ),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act(*sample())
