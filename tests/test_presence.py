"""A loss per item counts by its mean over the items that have the modality, for every method."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.presence import over_items
from tests.conftest import LateFusion, NoHostReads, make_batch
from tests.state_cases import METHODS, WITHOUT, built


def item_losses(model, inputs, label):
    """``(B,)`` each, from the model of the tests."""
    model.features = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    deep = {name: model.trunk(z).tanh() for name, z in model.features.items()}
    logits = {"joint": model.fused(torch.cat(list(deep.values()), 1))}
    logits |= {name: model.heads[name](z) for name, z in deep.items()}
    return {name: cross_entropy(x, label, reduction="none") for name, x in logits.items()}


def masked():
    inputs, label = make_batch(size=10)
    present = {"audio": torch.arange(10) % 3 > 0, "video": torch.arange(10) % 2 > 0}
    return inputs, label, present


def by_hand(losses, present):
    return {name: loss[present[name]].mean() if name in present else loss.mean() for name, loss in losses.items()}


def gradients(kind, reduce):
    """Of one step of a method, on losses that are reduced by the balancer, or by hand."""
    module = built(kind)
    inputs, label, present = masked()
    losses = item_losses(module.model, inputs, label)
    balancer = module.balancer
    if kind == "ARL":
        balancer = partial(balancer, scores=balancer.scores(module.unimodal()))
    if "AGM" in kind:
        losses["joint"] = module.modulated(inputs, label)
        torch.manual_seed(3)
    scalar = reduce(balancer, losses, present)
    scalar.backward()
    return scalar, [p.grad for p in module.model.parameters()]


@pytest.mark.filterwarnings("ignore:.*not finite")
@pytest.mark.parametrize("kind", METHODS | WITHOUT)
def test_every_method_sees_the_means(kind):
    def together(balancer, losses, present):
        return balancer(losses, present=present)

    def apart(balancer, losses, present):
        return balancer(by_hand(losses, present))

    torch.testing.assert_close(gradients(kind, together), gradients(kind, apart), rtol=1e-4, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans(), st.floats(0, 3)), min_size=1, max_size=9))
def test_the_mean_over_the_items_present(items):
    values, mask, weights = (torch.tensor(x) for x in zip(*items, strict=True))
    leaf = torch.where(mask, values, torch.nan).requires_grad_()  # what is absent may be anything
    found = over_items({"audio": leaf}, {"audio": mask}, lambda losses, present: {"audio": weights})["audio"]
    if not mask.any():
        assert found is None
        return
    torch.testing.assert_close(found, (weights * values)[mask].mean(), rtol=1e-5, atol=1e-5)
    found.backward()
    torch.testing.assert_close(leaf.grad, torch.where(mask, weights / mask.sum(), 0.0), rtol=1e-5, atol=1e-6)


def test_scalars_are_as_they_were():
    loss, single = torch.ones((), requires_grad=True), torch.ones(1, requires_grad=True)
    found = over_items({"joint": loss, "audio": single, "video": None}, {"smell": torch.ones(3) > 0})
    assert found["joint"] is loss
    assert found["audio"] is single
    assert found["video"] is None


def test_one_item_is_a_batch_too():
    single = torch.ones(1, requires_grad=True)
    masks = {"audio": torch.tensor([True])}
    assert over_items({"audio": single}, masks)["audio"].shape == ()
    assert over_items({"audio": single}, {"audio": torch.tensor([False])})["audio"] is None
    assert over_items({"audio": single}, None, lambda losses, present: {"audio": torch.tensor([2.0])})["audio"] == 2


def test_half_precision_is_summed_in_full():
    losses = torch.full((4096,), 100.0, dtype=torch.float16)
    assert over_items({"audio": losses})["audio"] == 100


def test_a_modality_that_nobody_has_is_missing():
    inputs, label, _ = masked()
    model, balancer = LateFusion(trunk=False), bg.MinNorm()
    nobody = {"video": torch.zeros(10, dtype=torch.bool)}
    balancer(item_losses(model, inputs, label), present=nobody).backward()
    assert balancer.last.names == ("joint", "audio")
    with pytest.raises(ValueError, match=r"all of \['video'\] are None, or no item has them"):
        balancer({"video": item_losses(model, inputs, label)["video"]}, present=nobody)


def test_no_host_read():
    inputs, label, present = masked()
    model, balancer = LateFusion(), bg.Uniform()
    balancer.item_weights = lambda losses, present: {name: loss.sigmoid() for name, loss in losses.items()}
    losses = item_losses(model, inputs, label)
    with NoHostReads():
        balancer(losses, present=present).backward()


class Harder:
    """Weighs items by how hard they are, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, losses, present):
        assert not any(loss.requires_grad for loss in losses.values())
        self.calls.append((sorted(losses), sorted(present)))
        return {name: loss / loss.mean() for name, loss in losses.items() if name != "joint"}


@pytest.mark.parametrize(
    "make", [bg.Uniform, bg.MIMO, lambda: bg.HeldOut(bg.Uniform())], ids=["Uniform", "MIMO", "HeldOut"]
)
def test_item_weights_in_training_only(make):
    inputs, label, present = masked()
    model, balancer, harder = LateFusion(), make(), Harder()
    balancer.item_weights = harder
    losses = item_losses(model, inputs, label)
    balancer(losses, present=present).backward()
    weights = {name: (loss / loss.mean()).detach() for name, loss in losses.items()}
    weights["joint"] = torch.ones(10)
    wanted = by_hand({name: weights[name] * loss for name, loss in losses.items()}, present)
    seen = dict(zip(balancer.last.names, balancer.last.losses, strict=True))
    torch.testing.assert_close(seen, {name: loss.detach() for name, loss in wanted.items()})
    with torch.no_grad():
        balancer(losses, present=present)
    assert harder.calls == [(["audio", "joint", "video"], ["audio", "video"])]


@pytest.mark.parametrize(
    ("weigh", "error", "words"),
    [
        (lambda losses, present: 2.0, TypeError, "item_weights returned a float; return a mapping"),
        (lambda losses, present: {"smell": 1}, ValueError, "weights for 'smell'; the losses per item are"),
        (lambda losses, present: {"audio": 1.0}, ValueError, r"returned a float for 'audio'; return \(10,\)"),
        (lambda losses, present: {"audio": torch.ones(2)}, ValueError, r"returned shape \(2,\) for 'audio'"),
    ],
)
def test_bad_weights_are_refused(weigh, error, words):
    inputs, label, _ = masked()
    balancer = bg.Uniform()
    balancer.item_weights = weigh
    with pytest.raises(error, match=words):
        balancer(item_losses(LateFusion(), inputs, label))


@pytest.mark.parametrize(
    ("loss", "mask", "words"),
    [
        (torch.ones(()), torch.ones(3) > 0, r"its loss is one number for all of them; give a loss per item"),
        (torch.ones(3), torch.ones(3), r"present\['audio'\] is torch.float32 of shape \(3,\); give one boolean"),
        (torch.ones(3), torch.ones(2) > 0, r"give one boolean per item, shape \(3,\)"),
        (torch.ones(3), [True, True, True], r"present\['audio'\] is list"),
    ],
)
def test_bad_masks_are_refused(loss, mask, words):
    with pytest.raises(ValueError, match=words):
        bg.Uniform()({"audio": loss.requires_grad_()}, present={"audio": mask})


def test_a_matrix_of_losses_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3, 2\), not that of a scalar or of one number per item"):
        bg.Uniform()({"audio": torch.ones(3, 2, requires_grad=True)})
