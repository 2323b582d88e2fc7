"""The picture over the depth of a model."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.integrations._depth import _endings, _natural, by_layer
from balanced_grad.records import Step

pytest.importorskip("matplotlib", reason="pip install 'balanced-grad[demo]'")


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


def taken(depth=12):
    torch.manual_seed(0)
    model = Stack(depth)
    balancer = bg.MinNorm(groups="tensor", params=model)
    losses = {"joint": model(torch.randn(5, 3)).square().mean(), "audio": model(torch.randn(5, 3)).mean()}
    grads = {
        name: torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for name, loss in losses.items()
    }
    balancer(losses).backward()
    return model, balancer.last, grads


def test_gramians_of_a_layer_add_up_in_the_order_of_their_numbers():
    model, step, grads = taken()
    layers = by_layer(step)
    assert list(layers) == ["embed.bias", "embed.weight", *(f"layers.{i}" for i in range(12))]
    for name, gramian in layers.items():
        inside = [i for i, (each, _) in enumerate(model.named_parameters()) if f"{each}.".startswith(f"{name}.")]
        rows = torch.stack([torch.cat([row[i].flatten() for i in inside]) for row in grads.values()]).double()
        torch.testing.assert_close(gramian, rows @ rows.mT, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_picture(tmp_path, ending):
    _, step, _ = taken()
    bg.plot_depth(step, tmp_path / f"depth.{ending}")
    assert (tmp_path / f"depth.{ending}").stat().st_size > 1000


def test_a_silent_loss_leaves_a_gap(tmp_path):
    gramian = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64)).expand(2, 2, 2)
    step = Step(("joint", "audio"), torch.ones(2), None, gramian, ("a.0.weight", "a.1.weight"))
    bg.plot_depth(step, tmp_path / "depth.png")
    assert (tmp_path / "depth.png").exists()


def test_names_are_as_short_as_they_may_be():
    assert _endings(["model.vision.layers.0", "model.vision.layers.1"]) == ["layers.0", "layers.1"]
    assert _endings(["model.vision.layers.0", "model.text.layers.0"]) == ["vision.layers.0", "text.layers.0"]
    assert _endings(["weight", "bias"]) == ["weight", "bias"]
    assert sorted(["layers.10", "layers.9", "embed"], key=_natural) == ["embed", "layers.9", "layers.10"]


@pytest.mark.parametrize("balancer", [bg.MinNorm(), bg.Uniform()], ids=["one problem", "no Gramian"])
def test_without_layers_there_is_no_depth(balancer, tmp_path):
    with pytest.raises(ValueError, match="groups='tensor'"):
        bg.plot_depth(None, tmp_path / "depth.png")
    w = torch.ones(2, requires_grad=True)
    balancer({"joint": w.sum(), "audio": w.prod()}).backward()
    with pytest.raises(ValueError, match="groups='tensor'"):
        bg.plot_depth(balancer.last, tmp_path / "depth.png")
