"""The product of one network's heads: the same as a product of experts under other names."""

import math

import pytest
import torch
from torch import nn

from balanced_grad.models import ProductOfExperts, ProductOfHeads, fit_weights
from tests.conftest import MODALITIES


def outputs(count=90, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (count,), generator=generator)
    hint = nn.functional.one_hot(label, 3).float()
    heads = {name: (i + 1) * hint + torch.randn(count, 3, generator=generator) for i, name in enumerate(MODALITIES)}
    return {"joint": 2 * hint + torch.randn(count, 3, generator=generator)} | heads, label


def test_it_is_a_product_of_experts():
    heads, label = outputs()
    product = ProductOfHeads(MODALITIES)
    pool = ProductOfExperts({MODALITIES: nn.Identity()} | {name: nn.Identity() for name in MODALITIES})
    named = {"+".join(MODALITIES) if name == "joint" else name: x for name, x in heads.items()}
    torch.testing.assert_close(product(heads), pool.combine(named))
    mine, theirs = product.fit(heads, label), fit_weights(pool, named, label, center="+".join(MODALITIES))
    assert list(mine.exponents) == ["joint", *MODALITIES]
    assert list(mine.exponents.values()) == list(theirs.exponents.values())
    assert product.weights == pytest.approx(mine.exponents)
    assert mine.after <= mine.before
    torch.testing.assert_close(product(heads), pool.combine(named))


def test_heads_that_add_nothing_leave_the_joint_one_alone():
    heads, label = outputs()
    generator = torch.Generator().manual_seed(7)
    noise = {name: 3 * torch.randn(heads["joint"].shape, generator=generator) for name in MODALITIES}
    product = ProductOfHeads(MODALITIES)
    product.fit({"joint": heads["joint"]} | noise, label)
    weights = product.weights
    assert max(weights[name] for name in MODALITIES) < 0.05 * weights["joint"]


def test_a_head_that_is_the_sum_of_the_others_up_to_rounding():
    """One way is then flat, and the labels, which one modality tells without error, make the others nearly so."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(200, 1, generator=generator)[::2] for _ in range(2))
    label = (a[:, 0] > 0).long()
    heads = {"a": torch.cat([-a, a], 1), "b": torch.cat([-b, b], 1)}
    product = ProductOfHeads(["a", "b"])
    found = product.fit({"joint": heads["a"] + heads["b"]} | heads, label)
    alone = nn.functional.cross_entropy(found.exponents["a"] * heads["a"], label)
    assert found.after <= float(alone) + 1e-6
    assert float((product({"joint": heads["a"] + heads["b"]} | heads).argmax(1) == label).float().mean()) > 0.95


def test_infinite_shrinkage_is_a_temperature_of_the_joint_head():
    heads, label = outputs()
    product = ProductOfHeads(MODALITIES)
    product.fit(heads, label, shrinkage=math.inf)
    weights = product.weights
    assert [weights[name] for name in MODALITIES] == [0.0] * len(MODALITIES)
    scale = torch.linspace(0.2, 3.0, 400) * weights["joint"]
    risks = torch.stack([nn.functional.cross_entropy(s * heads["joint"], label) for s in scale])
    assert float(nn.functional.cross_entropy(weights["joint"] * heads["joint"], label)) <= float(risks.min()) + 1e-6


def test_without_a_modality_the_other_heads_predict_with_weights_of_their_own():
    heads, label = outputs()
    product = ProductOfHeads(MODALITIES)
    product.fit(heads, label)
    pool = ProductOfExperts({name: nn.Identity() for name in MODALITIES})
    alone = {name: x for name, x in heads.items() if name != "joint"}
    fit_weights(pool, alone, label)
    torch.testing.assert_close(product(alone), pool.combine(alone))
    left = {"audio": heads["audio"], "video": None, "joint": None}
    torch.testing.assert_close(product(left), pool.combine({"audio": heads["audio"]}))


def test_a_head_that_counts_for_nothing_still_has_an_opinion_when_it_is_alone():
    """The joint head knows all that the others know, and text has memorised."""
    heads, label = outputs(300)
    wrong = 9.0 * nn.functional.one_hot((label + torch.arange(300) % 3) % 3, 3)
    known = {"joint": heads["text"] * 2, "audio": heads["text"], "video": heads["text"], "text": wrong}
    product = ProductOfHeads(MODALITIES)
    product.fit(known, label)
    assert product.weights["text"] < 0.02
    assert torch.equal(product({"text": wrong}).argmax(1), wrong.argmax(1))
    right = (product({"audio": heads["text"], "text": wrong}).argmax(1) == label).float().mean()
    assert right >= (heads["text"].argmax(1) == label).float().mean() - 0.02


def test_the_weights_are_in_the_checkpoint_and_heads_get_gradients():
    heads, label = outputs()
    product, other = ProductOfHeads(MODALITIES), ProductOfHeads(MODALITIES)
    product.fit(heads, label)
    other.load_state_dict(product.state_dict())
    torch.testing.assert_close(other(heads), product(heads))
    leaf = heads["audio"].requires_grad_()
    product(heads).sum().backward()
    assert leaf.grad is not None


def test_what_is_refused():
    heads, _ = outputs()
    with pytest.raises(ValueError, match="two or more"):
        ProductOfHeads(["audio"])
    with pytest.raises(ValueError, match="no head is called 'smell'"):
        ProductOfHeads(MODALITIES)({"smell": heads["audio"]})
    with pytest.raises(ValueError, match="joint"):
        ProductOfHeads(["audio", "joint"])
