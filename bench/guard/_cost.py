"""Time of the guard's parts beside an ordinary training step: all take turns, so that the machine's mood is shared."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

import balanced_grad as bg
from balanced_grad.demo._data import Split
from balanced_grad.demo._train import BATCH
from bench.accuracy._methods import UNIFORM
from bench.accuracy._train import Trainer
from bench.published._models import Case, cases

PERIODS = (5, 10, 20, 50)
CASES = {
    "mfeat": cases(2)["mfeat"],
    "wiki": Case("wiki, two small MLPs", {"image": (128,), "text": (10,)}),
    "avmnist": cases(2)["avmnist"],
}
WARM_UP = 3  # rounds


class Turns:
    """A network trained as it is, its guard, which looks when told to, and a network whose encoders are scaled."""

    def __init__(self, case: Case, every: int) -> None:
        self.items = case.data().train
        self.plain, self.scaled = trainer(case), trainer(case)
        self.guard = bg.HeldOut(trainer(case).balancer, every=every)
        outer = self.scaled.balancer = bg.HeldOut(self.scaled.balancer, every=every, target="encoder")
        self.scaled.begin(self.scaled.phase)
        batch = self.items[torch.arange(BATCH)]
        self.scaled.step(batch)
        outer.observe(self.losses(batch))  # from here on there are factors

    @torch.no_grad()
    def losses(self, batch: Split) -> dict[str, Tensor]:
        return self.plain.forward(batch).losses()

    def round(self, batch: Split) -> dict[str, float]:
        """Seconds of a step, and of what the guard adds: to each step, for losses and for encoders; in each check."""
        losses = self.plain.forward(batch).losses()
        calls = [
            clock(lambda: self.guard(losses)) - clock(lambda: self.plain.balancer(losses))
            for _ in range(self.guard.every)
        ]
        held_out = self.losses(batch)
        forward, observe = clock(lambda: self.losses(batch)), clock(lambda: self.guard.observe(held_out))
        # Of two in a row the second counts: the first brings the network back into the cache.
        scaled, plain = ([update(own, batch) for _ in "ab"][1] for own in (self.scaled, self.plain))
        return {
            "step": self.plain.step(batch)[0],
            "calls": float(np.median(calls)),
            "updates": scaled - plain,
            "forward": forward,
            "observe": observe,
        }


def trainer(case: Case) -> Trainer:
    return Trainer(case.data(), UNIFORM, UNIFORM.settings("sgd", 0), "sgd", seed=0)


def update(own: Trainer, batch: Split) -> float:
    """Seconds of the optimizer's step."""
    own.phase.objective(own.balancer, own.forward(batch)).backward()
    seconds = clock(own.optimizer.step)
    own.optimizer.zero_grad()
    return seconds


def clock(run: Callable[[], object]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def measure(case: Case, rounds: int, tick: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """A result per period, in milliseconds; ``cost`` is the time of training with the guard over that without."""
    turns = {every: Turns(case, every) for every in PERIODS}
    seen: dict[int, list[dict[str, float]]] = {every: [] for every in PERIODS}
    order = torch.Generator().manual_seed(0)
    for i in range(-WARM_UP, rounds):
        for every, own in turns.items():
            found = own.round(own.items[torch.randint(len(own.items), (BATCH,), generator=order)])
            if i >= 0:
                seen[every].append(found)
        tick()
    return [{"model": case.title, "every": every} | summary(every, found) for every, found in seen.items()]


def summary(every: int, rounds: list[dict[str, float]]) -> dict[str, float]:
    """Medians, and what they make per step."""
    ms = {name: 1000 * float(np.median([found[name] for found in rounds])) for name in rounds[0]}
    added = ms["calls"] + (ms["forward"] + ms["observe"]) / every
    cost = {"cost": 1 + added / ms["step"], "cost_encoders": 1 + (added + ms["updates"]) / ms["step"]}
    return ms | cost
