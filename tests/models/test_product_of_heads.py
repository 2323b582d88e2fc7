"""The product of one network's heads: the same as a product of experts under other names."""

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
    mine, theirs = product.fit(heads, label), fit_weights(pool, named, label)
    assert list(mine.exponents) == ["joint", *MODALITIES]
    assert list(mine.exponents.values()) == list(theirs.exponents.values())
    assert product.weights == pytest.approx(mine.exponents)
    assert mine.after <= mine.before
    torch.testing.assert_close(product(heads), pool.combine(named))


def test_without_a_modality_the_other_heads_predict():
    heads, label = outputs()
    product = ProductOfHeads(MODALITIES)
    product.fit(heads, label)
    left = product({"audio": heads["audio"], "video": None, "joint": None})
    wanted = (product.weights["audio"] * heads["audio"].log_softmax(1)).log_softmax(1)
    torch.testing.assert_close(left, wanted)


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
