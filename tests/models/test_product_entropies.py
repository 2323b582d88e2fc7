"""Entropies of experts against torch's own distributions."""

import math

import pytest
import torch
from torch import distributions, nn

from balanced_grad.models import ProductOfExperts, expert_entropies


def pool(task="classification", *names):
    return ProductOfExperts({name: nn.Identity() for name in names or ("audio", "video")}, task=task)


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_classification_multilabel_and_regression_are_those_of_torch():
    logits, numbers = {"audio": drawn(7, 3), "video": 3 * drawn(7, 3)}, {"audio": drawn(7, 6), "video": drawn(7, 6)}
    for task, outputs, of in (
        ("classification", logits, lambda x: distributions.Categorical(logits=x)),
        ("multilabel", logits, lambda x: distributions.Bernoulli(logits=x)),
        ("regression", numbers, lambda x: distributions.Normal(x[:, :3], (x[:, 3:] / 2).exp())),
    ):
        product = pool(task)
        found = expert_entropies(product, outputs)
        for name, x in (outputs | {"joint": product.combine(outputs)}).items():
            assert found[name] == pytest.approx(of(x).entropy().mean().item(), rel=1e-5)


def test_bounds_classes_excluded_and_one_logit():
    outputs = {"audio": torch.zeros(4, 3), "video": torch.tensor([[0.0, 0.0, -math.inf]] * 4)}
    found = expert_entropies(pool(), outputs)
    assert found["audio"] == pytest.approx(math.log(3))
    assert found["video"] == found["joint"] == pytest.approx(math.log(2))
    assert expert_entropies(pool(), {"audio": torch.zeros(4, 1)})["audio"] == pytest.approx(math.log(2))


def test_only_items_that_have_the_expert_count():
    outputs = {"audio": drawn(6, 3), "video": drawn(6, 3)}
    outputs["audio"][3:] = math.nan
    present = {"audio": torch.arange(6) < 3}
    found = expert_entropies(pool(), outputs, present)
    assert found["audio"] == pytest.approx(expert_entropies(pool(), {"audio": outputs["audio"][:3]})["audio"])
    nobody = {"audio": torch.zeros(6, dtype=torch.bool)}
    assert list(expert_entropies(pool(), outputs, nobody)) == ["video", "joint"]


def test_a_temperature_counts_in_the_product_only():
    product, outputs = pool(), {"audio": drawn(6, 3), "video": drawn(6, 3)}
    before = expert_entropies(product, outputs)
    product.temperature.fill_(4.0)
    after = expert_entropies(product, outputs)
    assert after["joint"] > before["joint"]
    assert [after[name] for name in outputs] == [before[name] for name in outputs]


def test_a_name_of_no_expert_is_refused():
    with pytest.raises(ValueError, match="no expert is called 'text'"):
        expert_entropies(pool(), {"text": torch.zeros(2, 3)})
