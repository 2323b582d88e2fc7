"""Ways to do the same, timed in turns."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def ratios(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    before: Callable[[], object],
    warm_up: int = 1,
    device: str = "cpu",
) -> dict[str, float]:
    """Median over rounds of the time of each way as a ratio to that of the first within the round.

    ``before`` runs ahead of each way, untimed.
    """
    first, *_ = ways
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm_up, rounds):
        seconds = {}
        for name, way in ways.items():
            before()
            _wait(device)
            start = time.perf_counter()
            way()
            _wait(device)
            seconds[name] = time.perf_counter() - start
        for name in ways if number >= 0 else ():
            taken[name].append(seconds[name] / seconds[first])
    return {name: statistics.median(values) for name, values in taken.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
