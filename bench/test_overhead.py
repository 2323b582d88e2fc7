"""A whole training step, wrapper and balancer included, as a ratio to the plain sum of the losses and a bare AdamW.

    pytest bench/test_overhead.py --benchmark-only

A small transformer per modality, batch 32, forward + backward + optimizer step. ``extra_info["ratio"]`` is the median
over rounds of time / time of the bare step in the same round, on one thread, so that drift hits both alike.
"""

import statistics
import time
from copy import deepcopy

import pytest
import torch

import balanced_grad as bg
from balanced_grad.optim import BalancedOptimizer
from bench._models import Model

ROUNDS = 40


class Bare:
    """The plain sum of the losses and AdamW."""

    def __init__(self, model, batch):
        self.model, self.batch = model, batch
        self.optimizer = torch.optim.AdamW(model.parameters())

    def scalar(self):
        return sum(self.model.losses(*self.batch).values())

    def step(self):
        self.optimizer.zero_grad()
        self.scalar().backward()
        self.optimizer.step()


class Balanced(Bare):
    """A balancer's scalar and the same optimizer, wrapped."""

    def __init__(self, model, batch, balancer):
        super().__init__(model, batch)
        self.balancer = balancer
        self.optimizer = BalancedOptimizer(self.optimizer, balancer, modalities=dict(model.encoders.items()))

    def scalar(self):
        losses = self.model.losses(*self.batch)
        return self.balancer(losses, self.model.features if self.balancer.level == "features" else None)


class Halved(bg.Uniform):
    """The plain sum, and a factor on every encoder's update: what scaling updates costs by itself."""

    def update_scales(self):
        return dict.fromkeys(("audio", "video"), torch.tensor(0.5))


BALANCERS = {
    "Uniform": lambda model: bg.Uniform(),
    "MIMO": lambda model: bg.MIMO(),
    "factors on the update": lambda model: Halved(),
    "MinNorm, features": lambda model: bg.MinNorm(level="features"),
    "MinNorm, parameters": lambda model: bg.MinNorm(),
    "BOGC, last layers": lambda model: bg.BOGC(model.last_layers()),
}


def seconds(step):
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", BALANCERS)
@pytest.mark.parametrize("modalities", [2, 3])
def test_training_step(benchmark, modalities, name):
    torch.manual_seed(0)
    model = Model("transformer", modalities)
    batch = model.batch(32)
    bare, ours = Bare(deepcopy(model), batch), Balanced(model, batch, BALANCERS[name](model))
    benchmark.group = f"training step, transformer, M={modalities}"
    benchmark.pedantic(ours.step, setup=bare.step, rounds=3, warmup_rounds=1)
    if benchmark.disabled:
        return
    pairs = [(seconds(bare.step), seconds(ours.step)) for _ in range(ROUNDS)]
    benchmark.extra_info["ratio"] = statistics.median(with_us / without for without, with_us in pairs)
