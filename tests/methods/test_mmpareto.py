"""MMPareto against its formulas."""

import math

import pytest
import torch

import balanced_grad as bg


def mmpareto_by_hand(joint, own, gamma, unit):
    """The published rule on one encoder, ``{tensor: gradient}`` each, by its formulas."""
    g, u = (torch.cat([grad.flatten() for grad in grads]) for grads in (joint, own))
    c = 0.5
    if torch.dot(g, u) <= 0:
        c = float((torch.dot(u - g, u) / (u - g).square().sum()).clamp(0, 1))
    out = []
    whole = (g + u).norm() / (2 * (c * g + (1 - c) * u)).norm()
    for a, b in zip(joint, own, strict=True):
        h = 2 * (c * a + (1 - c) * b)
        factor = (a + b).norm() / h.norm() if unit == "tensor" else whole
        out.append(gamma * h * max(1.0, float(factor)))
    return out


@pytest.mark.parametrize("unit", ["tensor", "encoder"])
@pytest.mark.parametrize("seed", range(6))
def test_mmpareto_equals_its_formulas(unit, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.zeros(shape, requires_grad=True) for shape in ((3, 2), (4,))]
    joint, own = ([torch.randn(t.shape, generator=generator) for t in tensors] for _ in range(2))
    if seed % 2:
        own = [b - 2 * a for a, b in zip(joint, own, strict=True)]  # a conflict
    losses = {
        "joint": sum((a * t).sum() for a, t in zip(joint, tensors, strict=True)),
        "audio": sum((b * t).sum() for b, t in zip(own, tensors, strict=True)),
    }
    bg.MMPareto(1.5, rescale=unit)(losses).backward()
    for tensor, want in zip(tensors, mmpareto_by_hand(joint, own, 1.5, unit), strict=True):
        torch.testing.assert_close(tensor.grad, want, rtol=1e-4, atol=1e-6)


def test_mmpareto_at_120_degrees_leans_to_the_smaller_gradient_but_keeps_the_length():
    w = torch.zeros(2, requires_grad=True)
    big = 10 * torch.tensor([math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)])
    bg.MMPareto(1.0)({"joint": (big * w).sum(), "audio": w[0]}).backward()
    assert w.grad.norm().item() == pytest.approx((big + torch.tensor([1.0, 0.0])).norm().item(), rel=1e-4)
    assert (w.grad @ torch.stack([big / 10, torch.tensor([1.0, 0.0])]).T / w.grad.norm()).tolist() == pytest.approx(
        [0.08, 0.82], abs=5e-3
    )


def test_mmpareto_without_conflict_is_gamma_times_the_sum():
    w = torch.zeros(2, requires_grad=True)
    bg.MMPareto(1.5)({"joint": 2 * w[0], "audio": w[0] + w[1]}).backward()
    torch.testing.assert_close(w.grad, torch.tensor([4.5, 1.5]))


def test_mmpareto_passes_non_finite_gradients_on():
    w = torch.zeros(2, requires_grad=True)
    bg.MMPareto()({"joint": torch.inf * w[0], "audio": w[0] + w[1]}).backward()
    assert not w.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 0.0}, "gamma=0.0: give a positive"),
        ({"gamma": math.nan}, "gamma=nan"),
        ({"rescale": "layer"}, "rescale='layer'"),
    ],
)
def test_bad_mmpareto_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        bg.MMPareto(**arguments)
