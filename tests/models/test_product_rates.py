"""Learning rates per expert and clipped gradients, against loops written out."""

import math

import pytest
import torch
from torch import nn

from balanced_grad.models import ProductOfExperts, train_experts
from tests.models.test_product_training import batches, product, same, states


def trained_by_hand(rates, clip, joint_lr):
    """The joint stage, written out: each expert with an optimizer of its own, at its scaled rate."""
    model = product()
    optimizers = [
        torch.optim.SGD(expert.parameters(), lr=rates.get(name, 1.0) * joint_lr, momentum=0.9, weight_decay=1e-4)
        for name, expert in model.named_experts()
    ]
    for inputs, label in batches():
        model.zero_grad()
        model.losses(model.outputs(inputs), label)["joint"].backward()
        norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
        if clip is not None and norm > clip:
            for p in model.parameters():
                p.grad *= clip / norm
        for optimizer in optimizers:
            optimizer.step()
    return model


@pytest.mark.parametrize("clip", [None, 0.05, 100.0])
@pytest.mark.parametrize("rates", [{}, {"audio+video": 10.0}, {"audio": 0.5, "video": 3.0}])
def test_rates_and_clip_are_those_of_a_loop_by_hand(rates, clip):
    model, by_hand = product(), trained_by_hand(rates, clip, 0.02)
    train_experts(model, batches(), batches(), mode="scratch", lr=0.02, rates=rates, clip=clip, epochs=1)
    for one, other in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_rate_holds_in_the_stage_of_one_expert_too():
    quick, plain = product(), product()
    options = {"mode": "frozen", "epochs": 2}
    train_experts(quick, batches(), batches(), lr=0.01, rates={"audio+video": 10.0}, **options)
    train_experts(plain, batches(), batches(), lr=0.1, **options)
    assert same(states(quick)["audio+video"], states(plain)["audio+video"])
    assert not same(states(quick)["audio"], states(plain)["audio"])


def test_an_optimizer_of_ones_own_gets_groups_only_where_rates_differ():
    given = []

    def make(parameters, lr):
        given.append(list(parameters))
        return torch.optim.Adam(given[-1], lr=lr)

    options = {"mode": "scratch", "optimizer": make, "epochs": 1, "lr": 0.5}
    train_experts(
        product(), batches(), batches(), rates=dict.fromkeys(("audio", "video", "audio+video"), 2.0), **options
    )
    train_experts(product(), batches(), batches(), rates={"video": 2.0}, **options)
    assert all(isinstance(p, nn.Parameter) for p in given[0])
    assert [group["lr"] for group in given[1]] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": {"text": 2.0}}, r"rates has 'text'.*'audio', 'video', 'audio\+video'"),
        ({"rates": {"audio": 0.0}}, r"rates\['audio'\]=0.0: give a positive factor"),
        ({"rates": {"audio": math.inf}}, "give a positive factor"),
        ({"clip": 0.0}, "clip=0.0: give the longest gradient"),
        ({"clip": math.nan}, "clip=nan"),
    ],
)
def test_rates_and_clips_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        train_experts(product(), batches(), batches(), **options)


def test_shared_parameters_have_one_rate():
    net = nn.Linear(2, 2)
    model = ProductOfExperts({"audio": net, "video": net})
    data = [({"audio": torch.randn(4, 2), "video": torch.randn(4, 2)}, torch.zeros(4).long())]
    train_experts(model, data, data, mode="scratch", rates={"audio": 2.0, "video": 2.0}, epochs=1)
    with pytest.raises(ValueError, match=r"rates gives expert 'video' 1, but it shares parameters with one at 2"):
        train_experts(model, data, data, mode="scratch", rates={"audio": 2.0}, epochs=1)
