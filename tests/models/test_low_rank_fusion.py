"""The low-rank fusion against the full tensor product that it factorises, and what a sum of modalities cannot say."""

import itertools

import pytest
import torch
from torch import nn

from balanced_grad.models import LowRankFusion


def full_tensor(fusion):
    """``T (O, d_1 + 1, ..., d_M + 1)``, formed entry by entry."""
    sizes = [factor.shape[-1] for factor in fusion.factors]
    tensor = torch.zeros(fusion.out_features, *sizes, dtype=fusion.factors[0].dtype)
    for place in itertools.product(*map(range, sizes)):
        for rank in range(fusion.rank):
            term = torch.ones_like(tensor[:, 0].reshape(fusion.out_features, -1)[:, 0])
            for factor, index in zip(fusion.factors, place, strict=True):
                term = term * factor[rank, :, index]
            tensor[(slice(None), *place)] += term
    return tensor


@pytest.mark.parametrize("sizes", [[3], [3, 2], [2, 3, 1], [1, 2, 1, 2]])
def test_it_is_the_full_tensor_product(sizes):
    torch.manual_seed(0)
    fusion = LowRankFusion(sizes, 4, rank=3).double()
    features = [torch.randn(5, size, dtype=torch.double) for size in sizes]
    expected = full_tensor(fusion).detach().unsqueeze(0).expand(5, *[-1] * (len(sizes) + 1))
    for h in reversed(features):  # contracts the last axis, one modality at a time
        z = torch.cat([h, torch.ones(5, 1, dtype=torch.double)], 1)
        expected = (expected * z.reshape(5, *[1] * (expected.dim() - 2), -1)).sum(-1)
    torch.testing.assert_close(fusion(*features), expected)


def test_a_tensor_of_full_rank_is_reached():
    """Any two-modality tensor of one output is a sum of as many products as its smaller side has entries."""
    torch.manual_seed(0)
    wanted = torch.randn(3, 4, dtype=torch.double)
    fusion = LowRankFusion([2, 3], 1, rank=3).double()
    with torch.no_grad():
        fusion.factors[0].copy_(torch.eye(3)[:, None])
        fusion.factors[1].copy_(wanted[:, None])
    torch.testing.assert_close(full_tensor(fusion)[0].detach(), wanted)


def test_one_modality_is_linear_and_the_order_of_modalities_is_free():
    fusion = LowRankFusion([3], 2, rank=2)
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    torch.testing.assert_close(fusion(x) + fusion(y), 2 * fusion((x + y) / 2))
    two, swapped = LowRankFusion([3, 2], 2), LowRankFusion([2, 3], 2)
    swapped.load_state_dict({f"factors.{i}": two.factors[1 - i] for i in range(2)})
    z = torch.randn(4, 2)
    torch.testing.assert_close(two(x, z), swapped(z, x))


@pytest.mark.parametrize("sizes", [[30], [30, 5], [6] * 6])
def test_outputs_start_at_variance_one(sizes):
    torch.manual_seed(0)
    fusion = LowRankFusion(sizes, 400, rank=8)
    with torch.no_grad():
        out = fusion(*(torch.randn(200, size) for size in sizes))
    assert out.square().mean().item() == pytest.approx(1.0, rel=0.25)


def test_further_batch_axes_and_every_parameter_learns():
    fusion = LowRankFusion([3, 2], 4, rank=2)
    out = fusion(torch.randn(5, 7, 3), torch.randn(5, 7, 2))
    assert out.shape == (5, 7, 4)
    out.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in fusion.parameters())
    assert sum(p.numel() for p in fusion.parameters()) == 2 * 4 * (4 + 3)


def test_it_learns_an_xor_of_signs_that_a_linear_head_cannot():
    torch.manual_seed(0)
    x, y = torch.randn(400, 1).sign(), torch.randn(400, 1).sign()
    label = (x * y > 0).long()[:, 0]
    correct = {}
    for name, head in (("low rank", LowRankFusion([1, 1], 2, rank=2)), ("sum", nn.Linear(2, 2))):
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        for _ in range(100):
            logits = head(x, y) if name == "low rank" else head(torch.cat([x, y], 1))
            optimizer.zero_grad()
            nn.functional.cross_entropy(logits, label).backward()
            optimizer.step()
        correct[name] = (logits.argmax(1) == label).double().mean().item()
    assert correct["low rank"] == 1.0
    assert correct["sum"] < 0.8  # three of the four corners at most


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: LowRankFusion([], 2), r"sizes=\[\]"),
        (lambda: LowRankFusion([3, 0], 2), r"sizes=\[3, 0\]"),
        (lambda: LowRankFusion([3], 2, rank=0), "rank=0"),
        (lambda: LowRankFusion([3, 2], 2)(torch.ones(1, 3)), r"widths \[3\].*\[3, 2\]"),
        (lambda: LowRankFusion([3, 2], 2)(torch.ones(1, 2), torch.ones(1, 3)), r"widths \[2, 3\]"),
    ],
)
def test_refusals(act, message):
    with pytest.raises(ValueError, match=message):
        act()
