"""The experiment: every method on every seed, then the clock."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from balanced_grad.demo._data import Dataset
from balanced_grad.demo._timing import Timing, time_methods
from balanced_grad.demo._train import ALONE, BASELINE, Method, Run, train

Values = dict[str, list[float]]


@dataclass(frozen=True)
class Results:
    """The runs of every method, in the order of the seeds, and the times."""

    modalities: tuple[str, ...]
    runs: dict[str, list[Run]]
    timing: dict[str, Timing]

    def heads(self, method: str) -> Values:
        """Test accuracy over seeds of the fused prediction (``"fused"``) and of each uni-modal head."""
        runs = self.runs[method]
        return {"fused": [r.fused for r in runs]} | {m: [r.heads[m] for r in runs] for m in self.modalities}

    def probes(self, method: str) -> Values:
        """Probe accuracy over seeds by modality."""
        return {m: [r.probe[m] for r in self.runs[method]] for m in self.modalities}

    def gaps(self, method: str) -> Values:
        """Probe accuracy minus that of the encoder of the same seed trained alone."""
        mine, alone = self.probes(method), self.probes(ALONE.name)
        return {m: [a - b for a, b in zip(mine[m], alone[m], strict=True)] for m in self.modalities}


def compare(
    data: Dataset, balanced: Sequence[Method], seeds: int, epochs: int, tick: Callable[[str], object]
) -> Results:
    """Train all methods and both baselines; ``tick(description)`` is called after every epoch."""
    runs: dict[str, list[Run]] = {}
    with threads(1 if all(len(shape) == 1 for shape in data.shapes.values()) else None):
        for seed in range(seeds):
            for method in (ALONE, BASELINE, *balanced):
                what = f"{method.name}, seed {seed}"
                run = train(data, method, seed, epochs, partial(tick, what))
                runs.setdefault(method.name, []).append(run)
        timing = time_methods(data, balanced)
    return Results(tuple(data.shapes), runs, timing)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample deviation (0 for a single value)."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Compute with so many threads for a while: tiny layers are fastest on one, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
