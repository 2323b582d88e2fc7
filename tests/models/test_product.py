"""The product of experts against the identities it is made of."""

import math

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

import balanced_grad as bg
from balanced_grad.models import ProductOfExperts, expert_subsets
from tests.conftest import NoHostReads

NAMES = ("audio", "video", "audio+video")
quick = hypothesis.settings(deadline=None, max_examples=30)
KEYS = ("audio", "video", ("audio", "video"))


def passing(keys=KEYS, **options):
    """A product whose outputs are given."""
    return ProductOfExperts({key: nn.Identity() for key in keys}, **options)


def logits(items=5, classes=4, names=NAMES, seed=0, dtype=torch.float32, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (3 * torch.randn(items, classes, generator=generator)).to(dtype).requires_grad_(grad) for name in names
    }


@quick
@hypothesis.given(seed=st.integers(0, 2**16), experts=st.integers(1, 4), scale=st.floats(0.1, 50))
def test_is_the_softmax_of_the_summed_logits(seed, experts, scale):
    names = [f"m{i}" for i in range(experts)]
    raw = {name: scale * x.double() for name, x in logits(names=names, seed=seed).items()}
    torch.testing.assert_close(passing(names).combine(raw), sum(raw.values()).log_softmax(-1))


@quick
@hypothesis.given(seed=st.integers(0, 2**16), shift=st.floats(-1e4, 1e4))
def test_constants_in_an_experts_logits_do_not_count(seed, shift):
    raw = {name: x.double() for name, x in logits(seed=seed).items()}
    moved = raw | {"video": raw["video"] + shift}
    torch.testing.assert_close(passing().combine(moved), passing().combine(raw), atol=1e-8, rtol=0)


def test_weights_and_temperature():
    raw, product = logits(), passing()
    product.weights.copy_(torch.tensor([0.5, 0.0, 2.0]))
    product.temperature.fill_(4.0)
    expected = (0.125 * raw["audio"] + 0.5 * raw["audio+video"]).log_softmax(-1)
    torch.testing.assert_close(product.combine(raw), expected)


def test_a_geometric_mean_is_not_sharpened_by_copies():
    raw = logits()
    product = passing()
    product.weights.fill_(1 / 3)
    copies = dict.fromkeys(NAMES, raw["audio"])
    torch.testing.assert_close(product.combine(copies), raw["audio"].log_softmax(-1))


def test_the_joint_loss_sends_the_same_gradient_to_every_expert():
    raw, label = logits(grad=True), torch.tensor([0, 1, 2, 3, 0])
    product = passing()
    loss = product.losses(raw, label)["joint"]
    gradients = torch.autograd.grad(loss, list(raw.values()))
    expected = (product.combine(raw).exp() - nn.functional.one_hot(label, 4)) / len(label)
    for gradient in gradients:
        torch.testing.assert_close(gradient, expected)


def test_a_uniform_expert_changes_nothing():
    raw = logits()
    flat = raw | {"video": torch.full((5, 4), 7.0)}
    without = {name: x for name, x in raw.items() if name != "video"}
    torch.testing.assert_close(passing().combine(flat), passing().combine(without))


@quick
@hypothesis.given(order=st.permutations(range(3)), seed=st.integers(0, 2**16))
def test_the_order_of_experts_does_not_matter(order, seed):
    raw = {name: x.double() for name, x in logits(seed=seed).items()}
    product = passing([KEYS[i] for i in order])
    torch.testing.assert_close(product.combine(raw), passing().combine(raw))


def test_one_expert_is_plain_cross_entropy():
    raw, label = logits(names=["audio"]), torch.tensor([0, 1, 2, 3, 0])
    losses = passing(["audio"]).losses(raw, label)
    torch.testing.assert_close(losses["joint"], cross_entropy(raw["audio"], label))
    torch.testing.assert_close(losses["audio"], cross_entropy(raw["audio"], label))


def test_losses_of_experts_are_their_own():
    raw, label = logits(), torch.tensor([0, 1, 2, 3, -100])
    losses = passing().losses(raw, label)
    assert list(losses) == ["joint", *NAMES]
    for name in NAMES:
        torch.testing.assert_close(losses[name], cross_entropy(raw[name], label))


def test_class_weights_count_in_the_joint_loss_only():
    raw, label, weights = logits(), torch.tensor([0, 1, 2, 3, -100]), torch.tensor([1.0, 5.0, 0.5, 2.0])
    losses = passing(class_weights=weights).losses(raw, label)
    torch.testing.assert_close(losses["joint"], cross_entropy(sum(raw.values()), label, weight=weights))
    torch.testing.assert_close(losses["audio"], cross_entropy(raw["audio"], label))


def test_dense_predictions():
    raw = {name: torch.randn(2, 3, 5, 4) for name in NAMES}  # heads or pixels between items and classes
    label = torch.randint(4, (2, 3, 5))
    product = passing()
    torch.testing.assert_close(product.combine(raw), sum(raw.values()).log_softmax(-1))
    expected = cross_entropy(sum(raw.values()).flatten(0, 2), label.flatten())
    torch.testing.assert_close(product.losses(raw, label)["joint"], expected)


def test_one_logit_is_two_classes():
    raw = logits(classes=1)
    label = torch.tensor([0, 1, 1, 0, 1])
    expected = binary_cross_entropy_with_logits(sum(raw.values())[:, 0], label.float())
    torch.testing.assert_close(passing().losses(raw, label)["joint"], expected)
    assert passing().combine(raw).shape == (5, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_normalised_in_float32(dtype):
    raw = logits(classes=1000, dtype=dtype)
    exact = sum(x.double() for x in raw.values()).log_softmax(-1)
    result = passing().combine(raw)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, atol=1e-4, rtol=0)


def test_mixed_precision_experts_are_promoted():
    raw = logits()
    mixed = raw | {"audio": raw["audio"].double()}
    assert passing().combine(mixed).dtype == torch.float64


# Prior


def test_the_prior_is_one_more_expert():
    raw, prior = logits(), torch.tensor([1.0, 0.0, -1.0, 2.0])
    product = passing(prior=prior, prior_weight=1.0)
    product.temperature.fill_(2.0)
    expected = (sum(raw.values()) / 2 + prior).log_softmax(-1)  # the temperature is the experts'
    torch.testing.assert_close(product.combine(raw), expected)
    torch.testing.assert_close(passing(prior=prior).combine(raw), passing().combine(raw))  # by default a fall-back


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_without_an_expert_the_prior_is_left(weight):
    prior = torch.tensor([1.0, 0.0, -1.0, 2.0])
    nobody = {"audio": torch.zeros(5, dtype=torch.bool), "video": torch.zeros(5, dtype=torch.bool)}
    result = passing(prior=prior, prior_weight=weight).combine(logits(), nobody)
    torch.testing.assert_close(result, prior.log_softmax(-1).expand(5, 4))


def test_without_an_expert_or_a_prior_classes_are_equally_likely():
    nobody = {"audio": torch.tensor([True, False, True, True, False]), "video": torch.zeros(5, dtype=torch.bool)}
    raw = logits(grad=True)
    losses = passing().losses(raw, torch.tensor([0, 1, 2, 3, 0]), nobody)
    result = passing().combine(raw, nobody)
    torch.testing.assert_close(result[[1, 4]], torch.full((2, 4), -math.log(4)))
    losses["joint"].backward()
    assert raw["audio"].grad[[1, 4]].eq(0).all()
    assert raw["audio"].grad.isfinite().all()


# Absence


def test_an_absent_modality_takes_its_joint_experts_along():
    raw = logits()
    present = {"audio": torch.tensor([True, False, True, True, True])}
    result = passing().combine(raw, present)
    torch.testing.assert_close(result[1], raw["video"][1].log_softmax(-1))
    torch.testing.assert_close(result[[0, 2, 3, 4]], passing().combine(raw)[[0, 2, 3, 4]])


def test_a_modality_left_out_is_absent_for_the_whole_batch():
    net = {"audio": nn.Linear(3, 4), "video": nn.Linear(2, 4), ("audio", "video"): nn.Bilinear(3, 2, 4)}
    product = ProductOfExperts(net)
    video = torch.randn(6, 2)
    for inputs in ({"video": video}, {"video": video, "audio": None}):
        assert list(product.outputs(inputs)) == ["video"]
        torch.testing.assert_close(product(inputs), net["video"](video).log_softmax(-1))
        assert list(product.losses(product.outputs(inputs), torch.zeros(6, dtype=torch.long))) == ["joint", "video"]


def test_what_lies_in_absent_slots_reaches_nothing():
    torch.manual_seed(0)
    product = ProductOfExperts(
        {"audio": nn.Linear(3, 4), "video": nn.Linear(2, 4), ("audio", "video"): nn.Bilinear(3, 2, 4)}
    )
    label, mask = torch.tensor([0, 1, 2, 3]), torch.tensor([True, False, True, False])
    audio, video = torch.randn(4, 3), torch.randn(4, 2)

    def gradients(slot):
        product.zero_grad()
        inputs = {"audio": torch.where(mask[:, None], audio, slot), "video": video}
        outputs = product.outputs(inputs, {"audio": mask})
        losses = product.losses(outputs, label, {"audio": mask})
        sum(losses.values()).backward()
        return {n: x.detach() for n, x in losses.items()}, [p.grad.clone() for p in product.parameters()]

    reference = gradients(torch.tensor(0.0))
    for slot in (math.nan, math.inf, 1e30):
        losses, grads = gradients(torch.tensor(slot))
        assert losses == reference[0]
        for own, expected in zip(grads, reference[1], strict=True):
            assert torch.equal(own, expected)
    # The audio expert's loss is that of the items that have audio.
    expected = cross_entropy(product.experts[0](audio[mask]), label[mask])
    torch.testing.assert_close(reference[0]["audio"], expected.detach())


def test_nan_outputs_of_absent_experts_do_not_count():
    raw, mask = logits(), torch.tensor([True, False, True, True, True])
    spoilt = raw | {"audio": raw["audio"].where(mask[:, None], math.nan)}
    torch.testing.assert_close(passing().combine(spoilt, {"audio": mask}), passing().combine(raw, {"audio": mask}))


def test_an_expert_that_no_item_has_gives_no_loss():
    nobody = {"audio": torch.zeros(5, dtype=torch.bool)}
    losses = passing().losses(logits(), torch.tensor([0, 1, 2, 3, 0]), nobody)
    assert list(losses) == ["joint", "video"]


# Excluded classes


def test_a_class_that_one_expert_excludes_is_excluded():
    raw = logits(grad=True)
    with torch.no_grad():
        raw["audio"][:, 2] = -math.inf
    label = torch.tensor([0, 1, 3, 3, 0])
    result = passing().combine(raw)
    assert result[:, 2].eq(-math.inf).all()
    torch.testing.assert_close(result.exp().sum(-1), torch.ones(5))
    losses = passing().losses(raw, label)
    sum(losses.values()).backward()
    assert all(x.grad.isfinite().all() for x in raw.values())


def test_an_expert_of_weight_zero_excludes_nothing():
    raw, product = logits(), passing()
    raw["audio"][:, 2] = -math.inf
    product.weights[0] = 0.0
    assert product.combine(raw).isfinite().all()


@pytest.mark.parametrize("one", [True, False])
def test_items_without_a_class_are_an_error(one):
    raw = logits()
    if one:
        raw["audio"][3] = -math.inf
    else:
        raw["audio"][3, :2] = -math.inf
        raw["video"][3, 2:] = -math.inf
    with pytest.raises(ValueError, match=r"item \[3\] .* no class left"):
        passing().combine(raw)


@pytest.mark.parametrize("log_variance", [-300.0, 0.0, 90.0, 190.0, 1e4])
def test_gaussians_of_any_log_variance(log_variance):
    """Who is absent or silenced takes no part, neither in the variance that is taken out nor in gradients."""
    product = passing(task="regression")
    one, other = (torch.tensor([[mean, log_variance]], requires_grad=True) for mean in (1.0, 3.0))
    wanted = torch.tensor([[2.0, log_variance - math.log(2)]])
    torch.testing.assert_close(product.combine({"audio": one}), torch.tensor([[1.0, log_variance]]))
    both = product.combine({"audio": one, "video": other})
    torch.testing.assert_close(both, wanted)
    absent = {"video": torch.zeros(1, dtype=torch.bool)}
    torch.testing.assert_close(product.combine({"audio": one, "video": other}, absent), one)
    (both.sum() + product.combine({"audio": one, "video": other}, absent).sum()).backward()
    assert one.grad.isfinite().all()
    assert other.grad.isfinite().all()


def test_nan_logits_stay_nan():
    raw = logits()
    raw["audio"][3] = math.nan
    assert passing().combine(raw)[3].isnan().all()


# Other tasks


def test_multilabel_is_a_product_of_bernoullis():
    raw, targets = logits(), torch.tensor([0, 1, 1, 0, 1])[:, None].expand(5, 4).float()
    product = passing(task="multilabel")
    result = product.combine(raw)
    yes = torch.stack([x.sigmoid() for x in raw.values()]).prod(0)
    no = torch.stack([1 - x.sigmoid() for x in raw.values()]).prod(0)
    torch.testing.assert_close(result.sigmoid(), yes / (yes + no))
    losses = product.losses(raw, targets)
    torch.testing.assert_close(losses["joint"], binary_cross_entropy_with_logits(sum(raw.values()), targets))
    torch.testing.assert_close(losses["video"], binary_cross_entropy_with_logits(raw["video"], targets))


@quick
@hypothesis.given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 20.0]))
def test_regression_multiplies_densities(seed, scale):
    raw = {name: scale * x.double() for name, x in logits(classes=2, seed=seed).items()}
    mean, log_variance = passing(task="regression").combine(raw).chunk(2, -1)
    precision = sum((-x[:, 1:]).exp() for x in raw.values())
    torch.testing.assert_close((-log_variance).exp(), precision)
    expected = sum((-x[:, 1:]).exp() * x[:, :1] for x in raw.values()) / precision
    torch.testing.assert_close(mean, expected)


def test_regression_losses_are_gaussian():
    raw, targets = logits(classes=6), torch.randn(5, 3)
    losses = passing(task="regression").losses(raw, targets)
    normal = torch.distributions.Normal(raw["audio"][:, :3], (0.5 * raw["audio"][:, 3:]).exp())
    torch.testing.assert_close(losses["audio"], -normal.log_prob(targets).mean())
    flat = passing(task="regression").losses(logits(classes=2), targets[:, 0])
    column = passing(task="regression").losses(logits(classes=2), targets[:, :1])
    assert flat == column


def test_regression_with_absent_experts_and_extreme_variances():
    raw = {"audio": torch.tensor([[1.0, 60.0]] * 3), "video": torch.tensor([[2.0, -60.0]] * 3)}
    raw = {name: x.requires_grad_() for name, x in raw.items()}
    present = {"audio": torch.tensor([True, True, False]), "video": torch.tensor([True, False, False])}
    product = passing(["audio", "video"], task="regression")
    result = product.combine(raw, present)
    torch.testing.assert_close(result, torch.tensor([[2.0, -60.0], [1.0, 60.0], [0.0, 0.0]]))
    result.sum().backward()
    assert all(x.grad.isfinite().all() for x in raw.values())


# With balancers and devices


@pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO, bg.MinNorm])
def test_balancers_take_the_losses(make):
    torch.manual_seed(0)
    product = ProductOfExperts(
        {"audio": nn.Linear(3, 4), "video": nn.Linear(2, 4), ("audio", "video"): nn.Bilinear(3, 2, 4)}
    )
    inputs, label = {"audio": torch.randn(6, 3), "video": torch.randn(6, 2)}, torch.randint(4, (6,))
    balancer = make()
    balancer(product.losses(product.outputs(inputs), label)).backward()
    assert balancer.last.names == ("joint", *NAMES)
    for name, expert in product.named_experts():
        assert all(p.grad.norm() > 0 for p in expert.parameters()), name


def test_reads_nothing_on_the_host_elsewhere():
    raw = {name: x.to("meta") for name, x in logits().items()}
    product = passing(prior=torch.zeros(4)).to("meta")
    present = {"audio": torch.ones(5, dtype=torch.bool, device="meta")}
    with NoHostReads():
        losses = product.losses(raw, torch.zeros(5, dtype=torch.long, device="meta"), present)
    assert list(losses) == ["joint", *NAMES]


def test_state_holds_what_was_fitted():
    product, other = passing(), passing()
    product.weights.copy_(torch.tensor([0.5, 0.0, 2.0]))
    product.temperature.fill_(4.0)
    other.load_state_dict(product.state_dict())
    assert torch.equal(other.weights, product.weights)
    assert other.temperature == 4


# Refusals and enumeration


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: ProductOfExperts({}), "non-empty mapping"),
        (lambda: ProductOfExperts({"joint": nn.Identity()}), "name of the product's loss"),
        (lambda: ProductOfExperts({1: nn.Identity()}), "1 is no modality"),
        (lambda: ProductOfExperts({"audio": torch.zeros(1)}), "a Tensor, not an nn.Module"),
        (lambda: ProductOfExperts({("a", "a"): nn.Identity()}), "twice"),
        (lambda: ProductOfExperts({"a+b": nn.Identity(), ("a", "b"): nn.Identity()}), "twice"),
        (lambda: passing(task="ranking"), "choose one of"),
        (lambda: passing(prior_weight=-1.0, prior=torch.zeros(4)), "number >= 0"),
        (lambda: passing(prior_weight=1.0), "give prior="),
        (lambda: passing(task="regression", class_weights=torch.ones(4)), "class_weights are for"),
        (lambda: passing().combine({"text": torch.zeros(5, 4)}), "no expert is called 'text'"),
        (lambda: passing().combine({}), "no expert speaks"),
        (lambda: passing().combine({"audio": torch.zeros(5)}), r"give floats of shape \(B, ..., C\)"),
        (lambda: passing().combine(logits() | {"video": torch.zeros(5, 3)}), r"'video' gives \(5, 3\) but 'audio'"),
        (lambda: passing(task="regression").combine(logits(classes=3)), "an even number"),
        (lambda: passing().combine(logits(), {"text": torch.ones(5).bool()}), r"present\['text'\]"),
        (lambda: passing().combine(logits(), {"audio": torch.ones(5)}), "one boolean per item"),
        (lambda: passing().combine(logits(), {"audio": torch.ones(4).bool()}), r"shape \(5,\)"),
        (lambda: passing().outputs(logits(), {"audio": torch.ones(4).bool()}), "for 5 items"),
        (lambda: passing(prior=torch.zeros(3)).combine(logits()), r"shape \(3,\), but experts give 4"),
        (lambda: passing().outputs(logits(), only="text"), "no expert is called 'text'"),
        (lambda: passing().losses(logits(), torch.zeros(4).long()), r"give \(5,\)"),
        (lambda: passing().losses(logits(), torch.zeros(5)), "class indices"),
        (lambda: passing(task="multilabel").losses(logits(), torch.zeros(5)), r"give \(5, 4\)"),
        (lambda: passing(task="regression").losses(logits(), torch.zeros(5)), r"give \(5, 2\)"),
        (lambda: expert_subsets("abcde", every=True), "31 subsets"),
        (lambda: expert_subsets(["a", "a"]), "twice"),
    ],
)
def test_refusals_name_what_was_written(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


@pytest.mark.parametrize("count", range(1, 5))
def test_every_subset_once(count):
    names = [f"m{i}" for i in range(count)]
    keys = expert_subsets(names, every=True)
    assert len({frozenset([k] if isinstance(k, str) else k) for k in keys}) == 2**count - 1 == len(keys)
    few = expert_subsets(names)
    assert few == names + ([tuple(names)] if count > 1 else [])
