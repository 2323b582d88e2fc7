"""Terms that are added to the scalar share its graph: each gets its gradient, whatever the balancer does inside."""

import pytest
import torch
from torch import nn

import balanced_grad as bg

METHODS = {
    "Uniform": lambda model: bg.Uniform(),
    "Uniform(params=)": lambda model: bg.Uniform(params=model),
    "MIMO": lambda model: bg.MIMO(),
    "MIMO(record_gramian=True)": lambda model: bg.MIMO(record_gramian=True),
    "MinNorm": lambda model: bg.MinNorm(),
    "MinNorm(level='features')": lambda model: bg.MinNorm(level="features"),
    "MinNorm(level='features', params=)": lambda model: bg.MinNorm(level="features", params=model),
    "MMPareto": lambda model: bg.MMPareto(),
    "OGM": lambda model: bg.OGM(model.encoders, noise=0.0),
    "MLB": lambda model: bg.MLB(model.encoders),
    "DGL": lambda model: bg.DGL(model.encoders),
    "BOGC": lambda model: bg.BOGC(model.encoders),
}
methods = pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleDict({"audio": nn.Linear(4, 8), "video": nn.Linear(6, 8)})
        self.head = nn.Linear(16, 1)
        self.inputs = {"audio": torch.randn(5, 4), "video": torch.randn(5, 6)}

    def losses(self):
        self.features = {name: encoder(self.inputs[name]).tanh() for name, encoder in self.encoders.items()}
        joint = self.head(torch.cat(list(self.features.values()), 1)).square().mean()
        return {"joint": joint} | {name: z.square().mean() for name, z in self.features.items()}

    def penalty(self):
        return 0.1 * sum((z**4).mean() for z in self.features.values())

    def gradients(self, loss, **options):
        self.zero_grad()
        loss.backward(**options)
        return {name: p.grad for name, p in self.named_parameters()}


def scalar(balancer, model, losses):
    return balancer(losses, features=model.features) if balancer.level == "features" else balancer(losses)


def total(*parts):
    return {
        name: sum(part[name] for part in parts if part[name] is not None)
        if any(part[name] is not None for part in parts)
        else None
        for name in parts[0]
    }


@methods
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("options", [{}, {"retain_graph": True}], ids=["", "retain_graph"])
def test_a_penalty_on_the_features(make, when, options):
    model = Model()
    balancer = make(model)
    losses = model.losses()
    alone = model.gradients(scalar(balancer, model, losses))
    model.losses()
    want = total(alone, model.gradients(model.penalty()))
    balancer = make(model)
    losses = model.losses()
    if when == "before":
        penalty = model.penalty()
        got = model.gradients(scalar(balancer, model, losses) + penalty, **options)
    else:
        loss = scalar(balancer, model, losses)
        got = model.gradients(model.penalty() + loss, **options)
    torch.testing.assert_close(got, want)


@methods
def test_two_balancers_on_one_graph(make):
    model = Model()
    first, second = make(model), make(model)
    alone = model.gradients(scalar(first, model, model.losses()))
    first = make(model)
    losses = model.losses()
    both = model.gradients(scalar(first, model, losses) + 0.5 * scalar(second, model, losses))
    want = {name: None if grad is None else 1.5 * grad for name, grad in alone.items()}
    torch.testing.assert_close(both, want)


@methods
def test_retain_graph_keeps_the_losses_graph(make):
    model = Model()
    balancer = make(model)
    losses = model.losses()
    scalar(balancer, model, losses).backward(retain_graph=True)
    model.zero_grad()
    losses["joint"].backward()  # would fail if the balancer had freed it
    assert model.head.weight.grad is not None


@methods
def test_without_other_terms_the_graph_is_freed(make):
    model = Model()
    balancer = make(model)
    losses = model.losses()
    scalar(balancer, model, losses).backward()
    with pytest.raises(RuntimeError, match="second time"):
        losses["joint"].backward()


def test_a_scalar_that_is_never_used_does_not_keep_graphs_for_ever():
    model, balancer = Model(), bg.MinNorm()
    unused = balancer(model.losses())
    losses = model.losses()
    balancer(losses).backward()
    with pytest.raises(RuntimeError, match="second time"):
        losses["joint"].backward()
    del unused
