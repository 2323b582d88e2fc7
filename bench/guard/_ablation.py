"""One long run per candidate, set and seed, measured at two moments."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

import balanced_grad as bg
from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._model import LateFusion
from balanced_grad.demo._probe import probe
from balanced_grad.demo._train import BATCH
from bench.accuracy._data import load
from bench.accuracy._evaluate import accuracies
from bench.accuracy._methods import Method
from bench.accuracy._objectives import JOINT, Forward
from bench.accuracy._study import Line, budget, rounded
from bench.accuracy._train import train
from bench.guard._candidates import CANDIDATES, Candidate, HeldOutLosses
from bench.report import machine

LONG = {"wiki": 100, "noise": 150}  # epochs, far beyond what the study's budget needs; others have the study's
DATASETS = ("wiki", "mfeat", "synergy", "noise", "redundant")
EVERY = 5  # steps between two checks: more often than the default, so that every signal sees enough


def ablation(
    datasets: Iterable[str],
    candidates: Iterable[str],
    seeds: int,
    epochs: int | None,
    tick: Callable[[], object] = lambda: None,
) -> Iterator[Line]:
    """A line per run; ``tick`` is called when one is done."""
    for dataset in datasets:
        data = load(dataset)
        length = epochs or LONG.get(dataset) or budget(data)
        for name in candidates:
            for seed in range(seeds):
                yield run(data, name, CANDIDATES[name], seed, length)
                tick()


def run(data: Dataset, name: str, candidate: Candidate, seed: int, epochs: int, every: int = EVERY) -> Line:
    """Train, and measure at the checkpoint and after the last epoch."""
    kept, held = (torch.tensor(part.indices) for part in bg.hold_out(range(len(data.train)), seed=seed))
    made: list[bg.Balancer] = []

    def make(model: LateFusion) -> bg.Balancer:
        made.append(candidate.make(model, source(model, data.train[held], seed), every))
        return made[-1]

    method = candidate.method or Method(name, make)
    items = replace(data, train=data.train[kept]) if candidate.holds_out else data
    trained = train(items, method, method.settings("sgd", 0), "sgd", seed, epochs, choose=True)
    line = {
        "dataset": data.name,
        "title": data.title,
        "candidate": name,
        "seed": seed,
        "epochs": epochs,
        "every": every,
        "checkpoint": measure(trained.model, method, data) | {"epoch": trained.epochs},
    }
    trained.model.load_state_dict(trained.last)
    line["last"] = measure(trained.model, method, data)
    line |= {"factors": floats(made, "factors"), "scales": floats(made, "update_scales")}
    return rounded(line) | {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}


def source(model: LateFusion, items: Split, seed: int) -> HeldOutLosses:
    """Losses of ever new batches of the guard's items."""
    order = torch.Generator().manual_seed(seed)

    def held_out() -> dict[str, Tensor]:
        batch = items[torch.randint(len(items), (BATCH,), generator=order)]
        features = model.features(batch.inputs)
        return Forward(model, batch, features, {JOINT: model.fuse(features)} | model.unimodal(features)).losses()

    return held_out


def measure(model: LateFusion, method: Method, data: Dataset) -> dict[str, Any]:
    """Accuracy by rule and split, and of the probes on each encoder, fitted to all training items."""
    val, test = probe(model, data)
    return {"accuracy": accuracies(model, method, data), "probe": {"val": val, "test": test}}


def floats(made: list[bg.Balancer], what: str) -> dict[str, float]:
    """The balancer's factors or scales after the last step, if there is a balancer."""
    if not made:
        return {}
    found = getattr(made[-1], what)
    return {name: x.item() for name, x in (found() if callable(found) else found).items()}
