"""Trials, then runs: one JSON line each, none done twice."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from balanced_grad.demo._cli import STEPS_IMAGES, default_epochs
from balanced_grad.demo._data import SPLITS, Dataset
from balanced_grad.demo._probe import probe
from balanced_grad.demo._train import BATCH
from bench.accuracy._data import FOLDED, FOLDS, fold_of, load, trusted
from bench.accuracy._evaluate import accuracies, evaluate, shapley_loss
from bench.accuracy._generated import TASKS
from bench.accuracy._methods import Method, Settings
from bench.accuracy._origin import origin
from bench.accuracy._own import find
from bench.accuracy._recipes import SMALL, Recipe, find_recipe
from bench.accuracy._timing import time_beside_joint
from bench.accuracy._train import DivergedError, train

RESULTS = Path(__file__).resolve().parent.parent / "results"
TUNING_SEED = 1_000_000  # of no run; further ones follow it
OLD = {"tuning_seed": 0, "tuning_seeds": 1, "fold": 0, "network": SMALL.name}  # of lines that do not say
TIMED_STEPS = 60
Line = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What two runs must share to be compared."""

    dataset: str
    optimizer: str
    epochs: int
    trials: int
    tuning_seeds: int = 1
    network: str = SMALL.name


class Ledger:
    """The lines of one data set's file; a line cut short by an interruption is dropped, and its run done again."""

    def __init__(self, folder: Path, dataset: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = "".join(c if c.isalnum() else "-" for c in dataset)
        self.path = folder / f"accuracy-{stem}.jsonl"
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        self.lines: list[Line] = [OLD | json.loads(line) for line in whole.splitlines()]

    def find(self, **keys: Any) -> Line | None:
        """The line with these entries."""
        return next((line for line in self.lines if all(line.get(k) == v for k, v in keys.items())), None)

    def add(self, line: Line) -> Line:
        """Append a line, on the disk too."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(OLD | line)
        return line


@dataclass
class Study:
    """One data set under one protocol."""

    data: Dataset
    protocol: Protocol
    ledger: Ledger
    recipe: Recipe = SMALL

    @classmethod
    def of(
        cls, dataset: str, optimizer: str, epochs: int | None, trials: int, results: Path, tuning_seeds: int = 1,
        network: str = SMALL.name,
    ) -> "Study":  # fmt: skip
        """Load the data; where validation is not to be trusted there is one trial, of the defaults.

        So it is with folds: who validates in one is tested in another, and one choice for all would have seen them.
        """
        recipe, data = find_recipe(network), load(dataset)
        recipe.check(data)
        trials = trials if trusted(dataset) and dataset not in FOLDED else 1
        tuning_seeds = tuning_seeds if trials > 1 else 1
        epochs = epochs or recipe.epochs or budget(data)
        protocol = Protocol(data.name, optimizer, epochs, trials, tuning_seeds, recipe.name)
        return cls(data, protocol, Ledger(results, data.name), recipe)

    def jobs(self, methods: list[str], seeds: int) -> Iterator[tuple[str, Callable[[Callable[[], object]], Line]]]:
        """What is still to do, as descriptions and calls that take a tick; a method's trials come first."""
        self.note_groups()
        for name in methods:
            method, tuned = find(name), self.protocol.trials > 1
            for trial, seed in product(range(self.protocol.trials), range(self.protocol.tuning_seeds * tuned)):
                if not self._found("trial", method, trial=trial, tuning_seed=seed):
                    what = f"{name}, trial {trial}" + f" on seed {seed}" * (self.protocol.tuning_seeds > 1)
                    yield what, lambda tick, m=method, t=trial, s=seed: self.trial(m, t, tick, s)
            for seed in range(seeds):
                if not self._found("run", method, seed=seed):
                    yield f"{name}, seed {seed}", lambda tick, m=method, s=seed: self.run(m, s, tick)

    def data_of(self, seed: int) -> Dataset:
        """What a seed trains, validates and tests on."""
        fold = fold_of(self.data.name, seed)
        return load(self.data.name, fold) if fold else self.data

    def note_groups(self) -> None:
        """Once for a file, and for each fold: which items belong together, where some do."""
        for fold in range(FOLDS if self.data.name in FOLDED else 1):
            about = {"kind": "groups", "dataset": self.data.name, "fold": fold}
            groups = self.data_of(fold).groups
            if groups and not self.ledger.find(**about):
                codes = {split: groups.codes[split].tolist() for split in ("val", "test")}
                self.ledger.add(about | {"groups": groups.kind} | codes)

    def _found(self, kind: str, method: Method, **keys: int) -> Line | None:
        protocol = asdict(self.protocol)
        if kind == "trial":
            del protocol["trials"], protocol["tuning_seeds"]  # trial 3 of 4 is trial 3 of 8
        return self.ledger.find(kind=kind, method=method.name, **protocol, **keys)

    def trial(self, method: Method, trial: int, tick: Callable[[], object], tuning_seed: int = 0) -> Line:
        """Train with the settings of a trial, on a seed of the trials, and note the validation score."""
        settings = method.settings(self.protocol.optimizer, trial, self.recipe.defaults)
        found = self._line("trial", method, trial=trial, tuning_seed=tuning_seed, settings=settings)
        try:
            found["score"] = self._train(method, settings, TUNING_SEED + tuning_seed, tick).score
        except DivergedError:
            found["score"] = None
        return self.ledger.add(found)

    def chosen(self, method: Method) -> Settings:
        """The settings of the trial with the best validation score, the mean over the seeds of the trials."""
        default = method.settings(self.protocol.optimizer, 0, self.recipe.defaults)
        if self.protocol.trials == 1:
            return default
        scores = {}
        for trial in range(self.protocol.trials):
            seeds = range(self.protocol.tuning_seeds)
            lines = [self._found("trial", method, trial=trial, tuning_seed=seed) for seed in seeds]
            if all(line and line["score"] is not None for line in lines):
                scores[trial] = tuple(np.mean([line["score"] for line in lines], axis=0)), lines[0]["settings"]
        return max(scores.values(), key=lambda found: found[0])[1] if scores else default

    def run(self, method: Method, seed: int, tick: Callable[[], object]) -> Line:
        """Train with the chosen settings and measure everything."""
        settings = self.chosen(method)
        data = self.data_of(seed)
        line = self._line("run", method, seed=seed, settings=settings)
        line |= {"fold": fold_of(data.name, seed), "items": {split: len(getattr(data, split)) for split in SPLITS}}
        try:
            trained = self._train(method, settings, seed, tick)
        except DivergedError as error:
            return self.ledger.add(line | {"failed": str(error)})
        model, watch = trained.model, trained.watch
        val, test = probe(model, data)
        measured = evaluate(model, method, data)
        measured |= {"probe": {"val": val, "test": test}, "checkpoint": trained.epochs}
        measured["shapley"] = shapley_loss(model, method, data.test)
        measured |= {"conflict": watch.conflict, "weights": watch.weights, "update_ratio": watch.update_ratio}
        measured |= {"factors": watch.factors}
        optimizer = self.protocol.optimizer
        measured["ms"] = time_beside_joint(data, method, settings, optimizer, TIMED_STEPS, self.recipe)
        model.load_state_dict(trained.last)
        measured["last"] = accuracies(model, method, data)
        return self.ledger.add(line | rounded(measured))

    def _train(self, method: Method, settings: Settings, seed: int, tick: Callable[[], object]) -> Any:
        at, data, choose = self.protocol, self.data_of(seed), trusted(self.data.name)
        return train(data, method, settings, at.optimizer, seed, at.epochs, choose, tick, self.recipe)

    def _line(self, kind: str, method: Method, **entries: Any) -> Line:
        about = {
            "title": self.data.title,
            "items": {split: len(getattr(self.data, split)) for split in SPLITS},
            "modalities": list(self.data.shapes),
            **origin(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        return {"kind": kind, "method": method.name, **asdict(self.protocol), **entries, **about}


def budget(data: Dataset) -> int:
    """Epochs in which the networks settle: the demo's, and what an XOR takes for the generated tasks."""
    return math.ceil(STEPS_IMAGES * BATCH / len(data.train)) if data.name in TASKS else default_epochs(data)


def rounded(value: Any) -> Any:
    """Five significant digits, all the way down: more would be noise on the disk."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value
