"""All methods in turns on one model: times, ratios, peak memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from balanced_grad.demo._data import Dataset
from balanced_grad.demo._train import BATCH
from bench.accuracy._train import Trainer
from bench.published._memory import peak_bytes
from bench.published._models import Case
from bench.published._rows import JOINT, MIMO, Row

WARM_UP = 3
RESAMPLES = 1000
PROFILED = 2  # steps: buffers that a method keeps are there beside the second forward pass
Times = npt.NDArray[np.float64]


def measure(
    case: Case,
    rows: Sequence[Row],
    rounds: int,
    tick: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Any]:
    """Everything about one model, ready for JSON; ``tick`` is called once a round."""
    data, own = case.data(), [row for row in rows if row.suits(case)]
    memory = {row.name: peak_memory(data, case, row) for row in own}
    turns = [(row, trainer(data, case, row)) for row in own]
    for _, timed in turns:
        timed.clock = clock
    times = take_turns(turns, data, rounds, tick)
    model = case.network(case.shapes, data.classes)
    return {
        "model": case.title,
        "modalities": len(case.shapes),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rounds": rounds,
        "rows": [
            {"method": row.name, "kind": row.kind}
            | summary(times[row.name], times)
            | {"extra_mib": (memory[row.name] - memory[JOINT]) / 2**20}
            for row in own
        ],
    }


def trainer(data: Dataset, case: Case, row: Row) -> Trainer:
    """A fresh network, its balancer and SGD."""
    method = replace(row.method, network=case.network)
    return Trainer(data, method, method.settings("sgd", 0), "sgd", seed=0)


def peak_memory(data: Dataset, case: Case, row: Row) -> int:
    """Bytes that the first steps of a fresh network hold at most, beside parameters and data."""
    own, batch = trainer(data, case, row), data.train[torch.arange(min(BATCH, len(data.train)))]
    return peak_bytes(lambda: [own.step(batch) for _ in range(PROFILED)])


def take_turns(
    turns: list[tuple[Row, Trainer]], data: Dataset, rounds: int, tick: Callable[[], object]
) -> dict[str, Times]:
    """Per method ``(rounds, 2)`` milliseconds of a step and of its subroutine."""
    order = torch.Generator().manual_seed(0)
    times = {row.name: np.empty((rounds, 2)) for row, _ in turns}
    for i in range(-WARM_UP, rounds):
        batch = data.train[torch.randint(len(data.train), (BATCH,), generator=order)]
        for row, own in turns:
            own.step(batch)
            seconds = own.step(batch)
            if i >= 0:
                times[row.name][i] = 1000 * np.array(seconds)
        turns = turns[::-1]  # so that nobody always follows the same neighbour
        tick()
    return times


def summary(own: Times, times: dict[str, Times]) -> dict[str, Any]:
    """Medians, and ratios to the joint method and to MIMO: of medians, and medians of those within a round."""
    (step, subroutine), (joint_step, joint), (_, mimo) = own.T, times[JOINT].T, times[MIMO].T
    extra, extra_mimo = subroutine - joint, mimo - joint
    clear = np.quantile(extra_mimo, 0.25) > 0
    return {
        "subroutine_ms": median(subroutine),
        "step_ms": median(step),
        "extra_ms": median(extra),
        "x_joint": median(subroutine) / median(joint),
        "x_joint_paired": median(subroutine / joint),
        "x_mimo": median(subroutine) / median(mimo),
        "x_mimo_paired": median(subroutine / mimo),
        "x_mimo_interval": interval(subroutine, mimo),
        "extra_x_mimo": median(extra) / median(extra_mimo) if clear else None,
        "extra_x_mimo_interval": interval(extra, extra_mimo),
        "step_x_joint": median(step) / median(joint_step),
        "step_x_joint_paired": median(step / joint_step),
    }


def median(values: Times) -> float:
    return float(np.median(values))


def interval(own: Times, mimo: Times) -> tuple[float, float | None]:
    """90 % interval of the ratio of the medians over rounds drawn anew; without an upper end where MIMO's may be 0."""
    drawn = np.random.default_rng(0).integers(len(own), size=(RESAMPLES, len(own)))
    above, below = np.median(own[drawn], 1), np.median(mimo[drawn], 1)
    ratios = np.divide(above, below, out=np.where(above == below, 1.0, np.inf), where=below > 0)
    low, high = np.quantile(ratios, (0.05, 0.95), method="nearest")
    return float(low), float(high) if np.isfinite(high) else None
