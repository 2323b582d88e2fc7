"""One method of each kind that has state, in a model, and what trains it."""

import torch
from torch import nn

import balanced_grad as bg
from balanced_grad.evidence import Laplace, MicroBatchVariance, StepVariance
from tests.conftest import LateFusion, make_batch

METHODS = {
    "MIMO": lambda model: bg.MIMO(ramp_steps=9, ema=0.8),
    "OGM": lambda model: bg.OGM(model.encoders, stop_after=8),
    "MLB": lambda model: bg.MLB(model.encoders, stop_after=8),
    "BOGC": lambda model: bg.BOGC(model.trunk),
    "BOGC, relative": lambda model: bg.BOGC(model.trunk, precision="relative", joint="source"),
    "BOGC, steps": lambda model: bg.BOGC(model.encoders, StepVariance(), layers="all"),
    "BOGC, windows": lambda model: bg.BOGC(model.encoders, MicroBatchVariance(3)),
    "BOGC, draws": lambda model: bg.BOGC(model.heads, Laplace(curvature="softmax", draws=2), layers="all"),
    "MIMO, dropped": lambda model: bg.MIMO(ramp_steps=9),
    "Alternate": lambda model: bg.Alternate(["audio", "video"], period=2),
    "ARL": lambda model: bg.ARL(model.encoders, stop_after=8),
    "GradientBlending": lambda model: bg.GradientBlending(every=2, warm_up=2),
    "AGM": lambda model: bg.AGM(("audio", "video")),
    "HeldOut": lambda model: bg.HeldOut(bg.MIMO(ema=0.8), every=3, warm_up=0),
    "HeldOut, OGM": lambda model: bg.HeldOut(bg.OGM(model.encoders), every=2, warm_up=1),
    "HeldOut, AGM": lambda model: bg.HeldOut(bg.AGM(("audio", "video")), every=2, warm_up=1),
}
WITHOUT = {
    "Uniform": lambda model: bg.Uniform(),
    "MinNorm": lambda model: bg.MinNorm(),
    "MMPareto": lambda model: bg.MMPareto(),
    "EqualNorms": lambda model: bg.EqualNorms(),
    "Project": lambda model: bg.Project("audio"),
    "DGL": lambda model: bg.DGL(model.encoders),
    "Gramian": lambda model: bg.Gramian(lambda gramian: gramian.diagonal().rsqrt()),
}


class Balanced(nn.Module):
    """A model with its balancer inside, that returns its loss: what the trainer of Hugging Face wants."""

    def __init__(self, kind):
        super().__init__()
        self.model = LateFusion(trunk="DGL" not in kind)
        self.balancer = (METHODS | WITHOUT)[kind](self.model)
        self.dropout = bg.ModalityDropout(0.4) if "dropped" in kind else None
        self.kind = kind

    def forward(self, audio, video, labels):
        inputs = {"audio": audio, "video": video}
        if self.dropout is not None:
            inputs, _ = self.dropout(inputs)
        guarded = self.training and isinstance(self.balancer, bg.HeldOut)
        if guarded and self.balancer.due:
            with torch.no_grad():
                self.balancer.observe(self.model.losses(*make_batch(seed=1000 + self.balancer.checks % 4)))
        losses = self.model.losses(inputs, labels)
        if "AGM" in self.kind:
            losses["joint"] = self.modulated(inputs, labels)
        options = {"scores": self.balancer.scores(self.unimodal())} if "ARL" in self.kind else {}
        self.model.features = {}  # what has a graph cannot be copied
        return {"loss": self.balancer(losses, **options)}

    def unimodal(self):
        return {m: self.model.heads[m](self.model.trunk(z).tanh()) for m, z in self.model.features.items()}

    def modulated(self, inputs, labels):
        def logits(present):
            z = {m: self.model.features[m] * (m in present) for m in self.model.features}
            return self.model.fused(torch.cat(list(z.values()), 1))

        full = self.balancer.logits(logits(("audio", "video")), logits, labels)
        return nn.functional.cross_entropy(full, labels)


def built(kind, seed=0):
    torch.manual_seed(seed)
    return Balanced(kind)


def train(module, steps, optimizer=None):
    """SGD on one batch per step, a function of the step alone."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1) if optimizer is None else optimizer
    for step in steps:
        inputs, labels = make_batch(seed=step)
        module(labels=labels, **inputs)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return module
