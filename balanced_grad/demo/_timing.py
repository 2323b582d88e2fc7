"""Time per step and subroutine time of each method, all methods taking turns in one loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._train import BASELINE, BATCH, Method, Trainer

WARM_UP = 20
MEASURED = 200


@dataclass(frozen=True)
class Timing:
    """Milliseconds per training step, medians; quartiles beside the subroutine time."""

    step: float
    subroutine: float
    subroutine_quartiles: tuple[float, float]


def time_methods(data: Dataset, methods: Sequence[Method]) -> dict[str, Timing]:
    """Time each method beside plain joint training.

    The subroutine time of a step is what lies between its logits and its final ``.grad``, minus the same of
    the joint step taken on the same batch in the same round; the median is over rounds.
    """
    trainers = [Trainer(data, method, seed=0) for method in (BASELINE, *methods)]
    order = torch.Generator().manual_seed(0)
    rounds = []
    for i in range(WARM_UP + MEASURED):
        rows = torch.randint(len(data.train), (BATCH,), generator=order)
        batch = data.train[rows.to(data.train.labels.device)]
        turn = i % len(trainers)  # nobody always goes first
        times = {id(t): _time(t, batch) for t in trainers[turn:] + trainers[:turn]}
        rounds.append([times[id(t)] for t in trainers])
    ms = 1000 * np.array(rounds[WARM_UP:])  # (rounds, methods, [step, subroutine])
    extra = ms[:, :, 1] - ms[:, :1, 1]
    return {
        trainer.method.name: Timing(
            float(np.median(ms[:, k, 0])),
            float(np.median(extra[:, k])),
            (float(np.quantile(extra[:, k], 0.25)), float(np.quantile(extra[:, k], 0.75))),
        )
        for k, trainer in enumerate(trainers)
    }


def _time(trainer: Trainer, batch: Split) -> tuple[float, float]:
    """Seconds of one whole step, and of its part from logits to ``.grad``."""
    start = _now(batch)
    logits, _ = trainer.method.logits(trainer.model, batch)
    forward = _now(batch)
    trainer.backward(logits, batch.labels)
    backward = _now(batch)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
    return _now(batch) - start, backward - forward


def _now(batch: Split) -> float:
    """Read the clock when everything asked of the device so far is done."""
    if batch.labels.is_cuda:
        torch.cuda.synchronize(batch.labels.device)
    return perf_counter()
