"""``balancer.factors``: every method's gradient is linear in them, and 1 is no factor."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch

METHODS = {
    "Uniform": lambda model: bg.Uniform(),
    "Uniform, params": lambda model: bg.Uniform(params=model.parameters()),
    "Uniform, recorded": lambda model: bg.Uniform(record_gramian=True),
    "MIMO": lambda model: bg.MIMO(),
    "MIMO, ema": lambda model: bg.MIMO(ema=0.5),
    "MinNorm": lambda model: bg.MinNorm(),
    "MinNorm, tensor": lambda model: bg.MinNorm(groups="tensor"),
    "MinNorm, features": lambda model: bg.MinNorm(level="features"),
    "MMPareto": lambda model: bg.MMPareto(),
    "Gramian": lambda model: bg.Gramian(lambda gramian: gramian.diagonal().rsqrt()),
    "BOGC, head": lambda model: bg.BOGC(model.trunk),
    "BOGC, encoders": lambda model: bg.BOGC(model.encoders),
    "BOGC, added": lambda model: bg.BOGC(model.trunk, joint="add"),
    "OGM": lambda model: bg.OGM(model.encoders, noise=0.0),
    "MLB": lambda model: bg.MLB(model.encoders),
    "DGL": lambda model: bg.DGL(model.encoders),
}


@pytest.fixture(params=METHODS)
def gradient(request):
    """Factors -> the gradient of a fresh balancer, in one vector."""

    def of(factors, settings=METHODS[request.param]):
        torch.manual_seed(0)
        trunk = request.param != "DGL"
        model, batch = LateFusion(MODALITIES, trunk=trunk).double(), make_batch(MODALITIES, dtype=torch.float64)
        balancer = settings(model)
        balancer.factors = {name: torch.tensor(factor, dtype=torch.float64) for name, factor in factors.items()}
        losses = model.losses(*batch)
        features = model.features if "features" in request.param else None
        balancer(losses, features).backward()
        assert set(balancer.last.factors) == set(factors)
        zero = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        return torch.cat([x.reshape(-1) for x in zero])

    return of


def test_linear_in_a_factor(gradient):
    off, half, on = (gradient({"audio": factor}) for factor in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (off + on) / 2, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(off, on, rtol=1e-3)
    torch.testing.assert_close(on, gradient({}), rtol=1e-5, atol=1e-7)


def test_the_joint_loss_may_have_a_factor_too(gradient):
    off, half, on = (gradient({"joint": factor, "video": 0.3}) for factor in (0.0, 0.5, 1.0))
    torch.testing.assert_close(half, (off + on) / 2, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(off, on, rtol=1e-3)


def test_without_any_factor_left_nothing_moves(gradient, request):
    """But for the parameters that one loss alone reaches, where a method balances per encoder or tensor."""
    left = gradient(dict.fromkeys(("joint", *MODALITIES), 0.0)).abs()
    if request.node.callspec.params["gradient"] in ("MinNorm, tensor", "MMPareto"):
        heads = sum(
            p.numel() for m in (LateFusion(MODALITIES),) for p in (*m.heads.parameters(), *m.fused.parameters())
        )
        left = left[:-heads]
    assert left.max() < 1e-9


def test_the_weights_that_are_shown_have_the_factors_in_them():
    w = nn.Parameter(torch.ones(2))
    balancer = bg.Uniform({"audio": 0.5, "video": 2.0})
    balancer.factors = {"video": torch.tensor(0.25)}
    scalar = balancer({"joint": w.sum(), "audio": w[0], "video": w[1]})
    scalar.backward()
    assert balancer.last.to_dict()["weights"] == {"joint": 1.0, "audio": 0.5, "video": 0.5}
    assert balancer.last.to_dict()["factors"] == {"video": 0.25}
    assert scalar.item() == 3.0
    assert w.grad.tolist() == [1.5, 1.5]


@pytest.mark.parametrize("factor", [0.5, torch.ones(1), torch.ones(2, 2), "half"])
def test_a_factor_is_a_tensor_without_dimensions(factor):
    balancer = bg.Uniform()
    with pytest.raises(TypeError, match=r"factors\['audio'\]"):
        balancer.factors = {"audio": factor}
    assert balancer.factors == {}
