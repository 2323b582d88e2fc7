"""Optimizers to wrap, and a balancer whose state decides the next step."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn, optim

import balanced_grad as bg
from balanced_grad.optim import BalancedOptimizer


class SignSGDMomentum(optim.Optimizer):
    """A third-party optimizer: no keyword in common with torch's but lr, a state of its own."""

    def __init__(self, params, lr=0.01, decay=0.5):
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    trace = self.state[p].setdefault("trace", torch.zeros_like(p))
                    trace.mul_(group["decay"]).add_(p.grad)
                    p.sub_(trace.sign(), alpha=group["lr"])
        return loss


@dataclass(frozen=True)
class Case:
    """How to build one optimizer, and what it asks for."""

    kind: type[Any]
    settings: dict[str, Any]
    closure: bool = False  # steps only with a closure
    sparse: bool = False  # takes sparse gradients only
    one_group: bool = False

    def make(self, params):
        return self.kind(params, lr=0.05, **self.settings)


def case(kind, *, closure=False, sparse=False, one_group=False, **settings):
    return Case(kind, settings, closure, sparse, one_group)


# capturable=True is refused by torch for parameters on the CPU.
CASES = {
    "SGD": case(optim.SGD),
    "SGD momentum": case(optim.SGD, momentum=0.9),
    "SGD fused": case(optim.SGD, momentum=0.9, fused=True),
    "Adam": case(optim.Adam),
    "Adam foreach": case(optim.Adam, foreach=True),
    "Adam fused": case(optim.Adam, fused=True),
    "AdamW": case(optim.AdamW, weight_decay=0.1, amsgrad=True),
    "AdamW foreach": case(optim.AdamW, foreach=True),
    "AdamW fused": case(optim.AdamW, fused=True),
    "NAdam": case(optim.NAdam),
    "RAdam": case(optim.RAdam),
    "Adamax": case(optim.Adamax),
    "Adagrad": case(optim.Adagrad),
    "Adagrad fused": case(optim.Adagrad, fused=True),
    "Adadelta": case(optim.Adadelta),
    "Adafactor": case(optim.Adafactor),
    "RMSprop": case(optim.RMSprop, momentum=0.5),
    "Rprop": case(optim.Rprop),
    "ASGD": case(optim.ASGD),
    "SparseAdam": case(optim.SparseAdam, sparse=True),
    "LBFGS": case(optim.LBFGS, max_iter=3, closure=True, one_group=True),
    "third party": case(SignSGDMomentum),
}
if hasattr(optim, "Muon"):
    CASES["Muon"] = case(optim.Muon)


class Paced(bg.Balancer):
    """Scales each modality's update by a float32 running mean of its losses: state that decides the next step."""

    def __init__(self, names=("audio", "video")):
        super().__init__()
        self.modality_names = names
        self.register_buffer("means", torch.ones(len(names)))
        self.scales = {}
        self.told = []

    def weigh(self, problem):
        if torch.is_grad_enabled():
            now = torch.stack([problem.losses[problem.names.index(name)] for name in self.modality_names])
            self.means.lerp_(now.float(), 0.3)
            self.scales = dict(zip(self.modality_names, self.means / self.means.sum(), strict=True))
        return bg.Weighting(torch.ones_like(problem.losses))

    def update_scales(self):
        return self.scales

    def resolve_target(self, scale_invariant):
        self.told.append(scale_invariant)


class Model(nn.Module):
    """Two encoders of one matrix each and a fused head: matrices only, because some optimizers take no vectors."""

    def __init__(self, dtype=None):
        super().__init__()
        self.audio = nn.Parameter(torch.randn(3, 4, dtype=dtype))
        self.video = nn.Parameter(torch.randn(5, 4, dtype=dtype))
        self.fused = nn.Parameter(torch.randn(4, 2, dtype=dtype))

    @property
    def modalities(self):
        return {"audio": self.audio, "video": self.video}

    def losses(self, seed=0):
        random = torch.Generator().manual_seed(seed)
        audio = torch.randn(6, 3, generator=random).to(self.audio) @ self.audio
        video = torch.randn(6, 5, generator=random).to(self.audio) @ self.video
        joint = ((audio + video) @ self.fused).tanh().square().mean()
        return {"joint": joint, "audio": (audio - 1).square().mean(), "video": (0.5 * video + 1).square().mean()}


class Run:
    """A model, a wrapped optimizer and the loop around them."""

    def __init__(self, name="AdamW", balancer=None, *, wrap=True, seed=0, dtype=None):
        torch.manual_seed(seed)
        self.case = CASES[name]
        self.model = Model(dtype)
        self.balancer = Paced() if balancer is None else balancer
        self.optimizer = self.base = self.case.make(list(self.model.parameters()))
        if wrap:
            self.optimizer = BalancedOptimizer(self.base, self.balancer, modalities=self.model.modalities)

    def backward(self, seed=0, scaled=lambda loss: loss):
        loss = self.balancer(self.model.losses(seed))
        scaled(loss).backward()
        if self.case.sparse:
            for p in self.model.parameters():
                p.grad = p.grad.to_sparse(1)
        return loss

    def step(self, seed=0, optimizer=None):
        """One step of the loop, by a closure where the optimizer needs one."""
        optimizer = optimizer or self.optimizer

        def closure():
            optimizer.zero_grad()
            return self.backward(seed)

        if self.case.closure:
            return optimizer.step(closure)
        closure()
        return optimizer.step()

    def steps(self, *seeds):
        for seed in seeds:
            self.step(seed)
        return self

    def parameters(self):
        return [p.detach().clone() for p in self.model.parameters()]
