"""What labels may be, the same at every entry point: left out what is unknown, refused by name what has no meaning."""

import math

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import balanced_grad as bg
from balanced_grad import labels as domain
from balanced_grad.diagnostics import latent_quality
from balanced_grad.models import ProductOfExperts, ProductOfHeads, fit_temperature, fit_weights, predictions
from tests.conftest import NoHostReads

IGNORED = -100
TASKS = ("classification", "multilabel", "regression")
quick = hypothesis.settings(deadline=None, max_examples=20)


class Late(nn.Module):
    def __init__(self, width=4, outputs=5):
        super().__init__()
        self.encoders = nn.ModuleDict({"a": nn.Linear(width, 6), "v": nn.Linear(width, 6)})
        self.head = nn.Linear(12, outputs)

    def forward(self, a, v):
        return self.head(torch.cat([self.encoders["a"](a), self.encoders["v"](v)], 1))


def attached(task, outputs=5, items=8):
    model = Late(outputs=outputs)
    aux = bg.attach(model, model.encoders, num_outputs=outputs, task=task)
    model(torch.randn(items, 4), torch.randn(items, 4))
    return model, aux


def experts(task):
    return ProductOfExperts({"a": nn.Identity(), "v": nn.Identity()}, task=task)


def outputs_of(task, items=8, width=5):
    width *= 2 if task == "regression" else 1
    return {name: torch.randn(items, width) for name in ("a", "v")}


def attach_losses(task, labels):
    return attached(task)[1].losses(None, labels)


def attach_scores(task, labels):
    return attached(task)[1].scores(labels)


def plain_scores(task, labels):
    return bg.scores({"a": torch.randn(8, 5)}, labels, task)


def product_losses(task, labels):
    return experts(task).losses(outputs_of(task), labels)


def weights(task, labels):
    return fit_weights(experts(task), outputs_of(task), labels, shrinkage=1.0)


def temperature(task, labels):
    return fit_temperature(experts(task), outputs_of(task), labels)


def heads(task, labels):
    return ProductOfHeads(["a", "v"], task=task).fit(outputs_of(task) | {"joint": outputs_of(task)["a"]}, labels)


ENTRIES = [attach_losses, attach_scores, plain_scores, product_losses, weights, temperature, heads]
CLASSES = torch.arange(8) % 5


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("classification", CLASSES.clone().fill_(255), "a label is 255, but the indices of 5 classes are 0 to 4"),
        ("classification", CLASSES.to(torch.uint8).fill_(156), "a label is 156"),
        ("classification", CLASSES - 1, "a label is -1"),
        ("classification", CLASSES + 1, "a label is 5"),
        ("classification", CLASSES.float(), r"labels.long\(\)"),
        ("classification", CLASSES > 2, r"torch.bool .* labels.long\(\)"),
        ("classification", torch.full((8, 5), 0.5), "sum to 1 per item, not to 2.5; .* task='multilabel'"),
        ("classification", torch.full((8, 5), -0.5), "between 0 and 1, not -0.5"),
        ("classification", CLASSES.numpy(), "labels are a ndarray; give a tensor"),
        ("multilabel", torch.full((8, 5), 2.0), "a label is 2, but labels of task='multilabel' are between 0 and 1"),
        ("multilabel", torch.full((8, 5), -1.0), "a label is -1"),
        ("multilabel", torch.full((8, 5), math.inf), "a label is inf"),
        ("multilabel", np.zeros((8, 5)), "labels are a ndarray"),
        ("regression", torch.full((8, 5), -math.inf), "a label is -inf, which is not finite"),
        ("regression", torch.zeros(8, 5, dtype=torch.cfloat), "give real numbers"),
        ("regression", [[0.0] * 5] * 8, "labels are a list"),
        ("classification", CLASSES[:7], r"\(7,\)"),
        ("multilabel", torch.zeros(8), r"\(8,\)"),
        ("regression", torch.zeros(8, 4), r"\(8, 4\)"),
        ("classification", CLASSES.to("meta"), "labels are on meta, predictions on cpu"),
    ],
)
def test_what_has_no_meaning_is_refused_by_name(entry, task, labels, message):
    fits = entry in (weights, temperature, heads)
    if fits and getattr(labels, "is_meta", False):
        pytest.skip("fits take their items to the host")
    with pytest.raises((TypeError, ValueError), match=message):
        entry(task, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_indices_of_every_integer_dtype_are_the_same(dtype):
    raw = outputs_of("classification")
    for call in (
        lambda y: bg.scores(raw, y),
        lambda y: experts("classification").losses(raw, y),
        lambda y: fit_temperature(experts("classification"), raw, y).exponents,
    ):
        torch.testing.assert_close(call(CLASSES.to(dtype)), call(CLASSES), rtol=0, atol=0)
    _, aux = attached("classification")
    logits = aux.logits()
    got = aux.losses(None, CLASSES.to(dtype))
    torch.testing.assert_close(got["a"], functional.cross_entropy(logits["a"], CLASSES))


class TestSoftClasses:
    shares = torch.randn(8, 5).softmax(1)

    def test_the_loss_is_that_of_torch(self):
        _, aux = attached("classification")
        logits = aux.logits()
        got = aux.losses(None, self.shares)
        torch.testing.assert_close(got["v"], functional.cross_entropy(logits["v"], self.shares))
        raw, by_class = outputs_of("classification"), torch.rand(5) + 0.1
        product = ProductOfExperts({"a": nn.Identity(), "v": nn.Identity()}, class_weights=by_class)
        got = product.losses(raw, self.shares)
        torch.testing.assert_close(got["joint"], functional.cross_entropy(sum(raw.values()), self.shares, by_class))
        torch.testing.assert_close(got["a"], functional.cross_entropy(raw["a"], self.shares))

    def test_certain_shares_are_classes(self):
        raw, certain = outputs_of("classification"), functional.one_hot(CLASSES, 5).float()
        for call in (lambda y: bg.scores(raw, y), lambda y: experts("classification").losses(raw, y)):
            torch.testing.assert_close(call(certain), call(CLASSES))
        fits = [fit_temperature(experts("classification"), raw, y).exponents["a"] for y in (certain, CLASSES)]
        assert fits[0] == pytest.approx(fits[1])

    def test_an_excluded_class_of_share_zero_costs_nothing(self):
        raw = {"a": torch.tensor([[0.0, 1.0, -math.inf]]), "v": torch.zeros(1, 3)}
        losses = experts("classification").losses(raw, torch.tensor([[0.5, 0.5, 0.0]]))
        assert all(loss.isfinite() for loss in losses.values())

    @pytest.mark.parametrize("unknown", [IGNORED, math.nan])
    def test_an_item_of_unknown_shares_is_left_out(self, unknown):
        raw, some = outputs_of("classification"), self.shares.clone()
        some[2:4] = unknown
        kept = [0, 1, 4, 5, 6, 7]
        less = {name: x[kept] for name, x in raw.items()}
        for call in (bg.scores, experts("classification").losses):
            torch.testing.assert_close(call(raw, some), call(less, some[kept]))


def sample(task, seed, width=3, items=30):
    """Outputs, labels with unknown ones, and a boolean of what is known, in the shape of the labels."""
    random = torch.Generator().manual_seed(seed)
    raw = {
        name: torch.randn(items, width * (1 + (task == "regression")), generator=random).double() for name in ("a", "v")
    }
    shape = (items,) if task == "classification" else (items, width)
    known = torch.rand(shape, generator=random) < 0.7
    if task == "classification":
        return raw, torch.randint(width, shape, generator=random).where(known, IGNORED), known
    y = torch.rand(shape, generator=random).double()  # smoothed labels, or values
    unknown = torch.where(torch.rand(shape, generator=random) < 0.5, IGNORED, torch.nan)
    return raw, y.where(known, unknown if task == "multilabel" else torch.nan), known


@quick
@hypothesis.given(task=st.sampled_from(TASKS), seed=st.integers(0, 999))
def test_what_is_unknown_is_left_out_of_losses_and_scores(task, seed):
    raw, y, known = sample(task, seed)
    losses, mean = experts(task).losses(raw, y), {}
    for name, x in raw.items():
        if task == "classification":
            mean[name] = functional.cross_entropy(x, y)
        elif task == "multilabel":
            mean[name] = functional.binary_cross_entropy_with_logits(x[known], y[known])
        else:
            m, log_variance = (part[known] for part in x.chunk(2, 1))
            mean[name] = functional.gaussian_nll_loss(m, y[known], log_variance.exp(), full=True)
    torch.testing.assert_close({name: losses[name] for name in raw}, mean)
    points = raw if task != "regression" else {name: x[:, :3] for name, x in raw.items()}
    if task == "multilabel":
        p, t = points["a"].sigmoid()[known], y[known]
        want = (t * p + (1 - t) * (1 - p)).mean()
    elif task == "regression":
        want = 1 / (points["a"] - y)[known].square().mean()
    else:
        want = points["a"].softmax(1)[known].gather(1, y[known][:, None]).mean()
    torch.testing.assert_close(bg.scores(points, y, task)["a"], want)


@quick
@hypothesis.given(task=st.sampled_from(TASKS), seed=st.integers(0, 999))
def test_a_fit_does_not_see_what_is_unknown(task, seed):
    """The same entries with other outputs where they are unknown."""
    raw, y, known = sample(task, seed)
    mask = known if task != "classification" else known[:, None]
    wide = torch.cat([mask, mask], 1) if task == "regression" else mask
    other = {name: x.where(wide, x + 3.0) for name, x in raw.items()}
    first, second = (fit_weights(experts(task), o, y, shrinkage=0.1) for o in (raw, other))
    assert list(first.exponents.values()) == pytest.approx(list(second.exponents.values()), abs=1e-5)
    assert first.after == pytest.approx(second.after, abs=1e-7)


@pytest.mark.parametrize("task", TASKS)
class TestNothingLabelled:
    def unknown(self, task, width=5):
        if task == "classification":
            return torch.full((8,), IGNORED)
        return torch.full((8, width), math.nan)

    @pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO, bg.MinNorm, lambda: bg.MinNorm(normalize="loss")])
    def test_attach_leaves_the_modalities_out(self, task, make):
        model, aux = attached(task)
        joint = model(torch.randn(8, 4), torch.randn(8, 4)).square().mean()
        assert all(score.isnan() for score in aux.scores(self.unknown(task)).values())
        losses = aux.losses(joint, self.unknown(task))
        assert list(losses) == ["joint"]
        scalar = make()(losses)
        scalar.backward()
        assert scalar.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize("make", [bg.OGM, bg.MLB])
    def test_methods_of_scores_modulate_nothing(self, task, make):
        model, aux = attached(task)
        joint = model(torch.randn(8, 4), torch.randn(8, 4)).square().mean()
        scores = aux.scores(self.unknown(task))
        balancer = make(model.encoders)
        balancer(aux.losses(joint, self.unknown(task)), scores=scores).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    def test_a_product_has_a_joint_loss_of_zero(self, task):
        raw = {name: x.requires_grad_() for name, x in outputs_of(task).items()}
        losses = experts(task).losses(raw, self.unknown(task))
        assert list(losses) == ["joint"]
        losses["joint"].backward()
        assert losses["joint"] == 0
        assert all(x.grad is None or (x.grad == 0).all() for x in raw.values())

    def test_an_expert_without_a_labelled_item_is_left_out(self, task):
        raw, y = outputs_of(task), torch.zeros(8, 5) if task != "classification" else torch.zeros(8).long()
        y[:4] = self.unknown(task)[:4]
        losses = experts(task).losses(raw, y, {"a": torch.arange(8) < 4})
        assert list(losses) == ["joint", "v"]

    @pytest.mark.parametrize("fit", [weights, temperature, heads])
    def test_fits_refuse(self, task, fit):
        with pytest.raises(ValueError, match="no validation item with an expert is labelled: all targets are"):
            fit(task, self.unknown(task))

    def test_on_a_device_losses_are_zero_without_a_look(self, task, monkeypatch):
        monkeypatch.setattr(domain, "looked_at", lambda _: False)
        _, aux = attached(task)
        with NoHostReads():
            losses = aux.losses(None, self.unknown(task))
        assert list(losses) == ["a", "v"]
        sum(losses.values()).backward()
        assert all(loss == 0 for loss in losses.values())
        assert all((p.grad == 0).all() for p in aux.parameters())
        assert bg.scores({"a": torch.randn(8, 5)}, self.unknown(task), task)["a"].isnan()


@pytest.mark.parametrize("task", TASKS)
def test_on_a_device_the_losses_are_those_of_the_host(task, monkeypatch):
    raw, y, _ = sample(task, 0)
    points = raw if task != "regression" else {name: x[:, :3] for name, x in raw.items()}
    host = experts(task).losses(raw, y), bg.scores(points, y, task)
    monkeypatch.setattr(domain, "looked_at", lambda _: False)
    torch.testing.assert_close((experts(task).losses(raw, y), bg.scores(points, y, task)), host)


def test_on_a_device_a_label_out_of_range_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(domain, "looked_at", lambda _: False)
    assert experts("multilabel").losses(outputs_of("multilabel"), torch.full((8, 5), -1.0))["a"].isnan()


@pytest.mark.parametrize("labels", [torch.zeros(8, 1), torch.zeros(8)])
@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_one_output_takes_both_shapes(task, labels):
    _, aux = attached(task, outputs=1)
    logits = aux.logits()["a"]
    want = logits.square().mean() if task == "regression" else functional.softplus(logits).mean()
    torch.testing.assert_close(aux.losses(None, labels)["a"], want)
    width = 2 if task == "regression" else 1
    raw = {name: torch.randn(8, width) for name in ("a", "v")}
    got = experts(task).losses(raw, labels)
    torch.testing.assert_close(got, experts(task).losses(raw, torch.zeros(8, 1)))


def test_a_batch_without_items_is_not_nan():
    product = experts("regression")
    empty = {name: torch.zeros(0, 4) for name in ("a", "v")}
    assert product.losses(empty, torch.zeros(0, 2)) == {"joint": 0}


def test_many_half_precision_entries_do_not_overflow():
    logits = torch.zeros(300, 300, dtype=torch.half)
    y = torch.zeros(300, 300)
    y[0, 0] = math.nan
    loss = experts("multilabel").losses({"a": logits, "v": logits}, y)["a"]
    torch.testing.assert_close(loss, torch.tensor(math.log(2)))
    model = nn.Linear(2, 300).half()
    aux = bg.attach(nn.Sequential(model), {"a": model}, num_outputs=300, task="multilabel", pool=lambda z: z)
    aux._source.logits = lambda: {"a": logits}
    assert aux.losses(None, y)["a"].item() == pytest.approx(math.log(2), rel=1e-3)


def test_class_weights_of_another_length_are_refused():
    product = ProductOfExperts({"a": nn.Identity()}, class_weights=torch.ones(7))
    with pytest.raises(ValueError, match=r"class_weights have shape \(7,\); give one for each of 5 classes"):
        product.losses({"a": torch.zeros(8, 5)}, CLASSES)


def test_label_smoothing_keeps_the_order_of_modalities():
    y = (torch.rand(256, 20) < 0.05).float()
    logits = {"strong": (2 * y - 1) * 4, "weak": 0.1 * torch.randn(256, 20)}
    hard = bg.scores(logits, y, "multilabel")
    for smoothed in (y * 0.9 + 0.05, y * 0.98 + 0.01, y.where(y > 0, torch.nan)):
        soft = bg.scores(logits, smoothed, "multilabel")
        assert soft["strong"] > 0.9
        assert soft["weak"] == pytest.approx(0.5, abs=0.03)
    assert hard["strong"] > 0.95


def test_agm_takes_the_same_labels():
    logits = {"a": torch.randn(8, 5, requires_grad=True), "v": torch.randn(8, 5, requires_grad=True)}

    def model(present):
        return sum(x for name, x in logits.items() if name in present)

    def factors(labels):
        balancer = bg.AGM(("a", "v"))
        out = balancer.logits(model(("a", "v")), model, labels)
        balancer({"joint": out.square().mean()}).backward()
        return {name: float(s) for name, s in balancer.last.scores.items()}

    assert factors(CLASSES.int()) == factors(CLASSES)
    some = CLASSES.clone()
    some[3] = IGNORED
    share = functional.one_hot(some.clamp_min(0), 5).float()
    share[3] = math.nan
    assert factors(share) == pytest.approx(factors(some))
    with pytest.raises(ValueError, match="a label is 255"):
        factors(CLASSES + 255)


@pytest.mark.parametrize("regression", [False, True])
def test_latent_quality_leaves_unlabelled_items_out(regression):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=random).double()
    y = x.sum(1) if regression else (x.sum(1) > 0).long()
    spoilt = y.clone()
    spoilt[::5] = math.nan if regression else IGNORED
    kept = torch.arange(200) % 5 > 0

    class Plain:
        def encode(self, inputs):
            return inputs["a"]

    def measure(x, y):
        return latent_quality(lambda *_: Plain(), ({"a": x}, y), ({"a": x}, y), seeds=1, progress=False)[["a"]].risk

    assert measure(x, spoilt) == measure(x[kept], y[kept])
    with pytest.raises(ValueError, match="items: no item is labelled"):
        measure(x, torch.full_like(y, math.nan if regression else IGNORED))


def test_predictions_pass_unknown_labels_on():
    product = ProductOfExperts({"a": nn.Linear(3, 2)})
    batch = {"a": torch.randn(4, 3)}, torch.tensor([0, 1, IGNORED, 1])
    outputs, targets, present = predictions(product, [batch, batch])
    assert math.isfinite(fit_temperature(product, outputs, targets, present).after)
