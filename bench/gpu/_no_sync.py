"""A step of every method, and whether the host waits for the device in it.

Two watches at once: PyTorch's own, which makes an error of most operations that wait, and a dispatch mode, which sees
tensors being read by Python. The first steps are not watched: they load kernels and make tables.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import balanced_grad as bg
from balanced_grad.evidence import StepVariance
from bench._models import Model
from bench.gpu._case import Case, Clock

UNWATCHED, WATCHED = 3, 2


class Reads(TorchDispatchMode):
    """Counts how often a tensor of this kind of device is read on the host, and fails on it if that has to wait."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.count = device, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default and args[0].device.type == self.device:
            if self.device != "cpu":
                raise RuntimeError("a tensor was read on the host")
            self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(device: str) -> Iterator[Reads]:
    """Both watches on a GPU; on the CPU, where reading waits for nothing, only the count."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Reads(device) as reads:
            yield reads
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


class Agreement(bg.RowFusion):
    """A fusion of one's own."""

    def fuse(self, rows, problem):
        total = rows.sum(0)
        return torch.where(total.abs() == rows.abs().sum(0), total, 0)


METHODS: dict[str, Callable[[Model], bg.Balancer]] = {
    "Uniform": lambda model: bg.Uniform(),
    "MIMO": lambda model: bg.MIMO(),
    "MIMO, ema": lambda model: bg.MIMO(ema=0.5),
    "MinNorm": lambda model: bg.MinNorm(),
    "MinNorm, features": lambda model: bg.MinNorm(level="features"),
    "MinNorm, per tensor": lambda model: bg.MinNorm(groups="tensor"),
    "MinNorm, bounds": lambda model: bg.MinNorm(bounds={"joint": (0.3, 1)}),
    "MMPareto": lambda model: bg.MMPareto(),
    "Gramian": lambda model: bg.Gramian(lambda gramian: gramian.diagonal().rsqrt()),
    "RowFusion": lambda model: Agreement(),
    "BOGC, last layers": lambda model: bg.BOGC(model.last_layers()),
    "BOGC, whole encoders": lambda model: bg.BOGC(model.encoders, StepVariance(), layers="all"),
    "OGM": lambda model: bg.OGM(model.encoders),
    "MLB": lambda model: bg.MLB(model.encoders),
    "DGL": lambda model: bg.DGL(model.encoders),
    "HeldOut(MinNorm)": lambda model: bg.HeldOut(bg.MinNorm()),
}


def plain_step(balancer, model, inputs, label):
    """Losses to ``.grad``."""
    losses = model.losses(inputs, label)
    balancer(losses, features=model.features if balancer.level == "features" else None).backward()


def agm_step(balancer, model, inputs, label):
    """AGM weighs logits."""
    model.losses(inputs, label)
    features = dict(model.features)

    def logits(present=model.names):
        parts = [z if name in present else torch.zeros_like(z) for name, z in features.items()]
        return model.fused(torch.cat(parts, 1))

    balancer({"joint": cross_entropy(balancer.logits(logits(), logits, label), label)}).backward()


def optimizer_step(optimizer, model, inputs, label):
    """The optimizer that holds a balancer."""
    optimizer.zero_grad()
    plain_step(optimizer.balancer, model, inputs, label)
    optimizer.step()


def wrapped(model: Model) -> bg.BalancedOptimizer:
    return bg.BalancedOptimizer(torch.optim.AdamW(model.parameters()), bg.MIMO())


def watch(make, step, device: str, *, modalities: int = 2, batch: int = 16) -> dict:
    """Steps of one method; a wait is an error of the case."""
    torch.manual_seed(0)
    model = Model("mlp", modalities).to(device)
    holder = make(model)
    inputs, label = model.batch(batch)
    for _ in range(UNWATCHED):
        step(holder, model, inputs, label)
    with watched(device) as reads:
        for _ in range(WATCHED):
            step(holder, model, inputs, label)
    return {"steps": WATCHED, "reads": reads.count}


def cases(device: str, clock: Clock) -> list[Case]:
    ways = {name: (make, plain_step) for name, make in METHODS.items()}
    ways["AGM"] = (lambda model: bg.AGM(model.names), agm_step)
    ways["BalancedOptimizer(AdamW, MIMO)"] = (wrapped, optimizer_step)
    return [Case(name, partial(watch, make, step, device)) for name, (make, step) in ways.items()]
