"""One training run on a subset of the modalities, and what its frozen latent is worth."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from balanced_grad.diagnostics._items import Array, Items
from balanced_grad.diagnostics._model import Model, Train, latents, own_risk, parameter_count
from balanced_grad.heads import FOLDS, HeadClass, refit, require_items_per_class
from balanced_grad.subsets import Subset


@dataclass(frozen=True)
class Division:
    """Which rows train the encoders and which the heads, in one seed."""

    train: Array
    probe: Array

    @classmethod
    def draw(cls, items: Items, labels: Array | None, held_out: float, fraction: float, seed: int) -> "Division":
        """Hold out, every class alike; smaller fractions of the rest are nested in larger ones."""
        from sklearn.model_selection import train_test_split

        targets = items.host_targets()
        try:
            rest, probe = train_test_split(
                np.arange(len(items)),
                test_size=held_out,
                random_state=seed,
                stratify=None if labels is None else targets,
            )
        except ValueError as error:
            raise ValueError(f"cannot hold out {held_out:.3g} of {len(items)} items: {error}") from error
        if labels is not None:
            require_items_per_class(targets[probe], labels)
        elif len(probe) < FOLDS:
            raise ValueError(
                f"the heads are fitted with {FOLDS}-fold cross-validation, but only {len(probe)} of {len(items)} items "
                "are held out for them; give more items, or raise held_out="
            )
        return cls(rest[: max(1, round(fraction * len(rest)))], probe)


@dataclass(frozen=True)
class Outcome:
    """What one run gave: per-item test ``losses`` and ``correct`` of the refitted head, and of the model itself."""

    losses: Array
    correct: Array | None
    penalty: float
    width: int
    parameters: int | None = None
    train_loss: float | None = None
    test_risk: float | None = None
    encoders: dict[str, Array] = field(default_factory=dict)  # losses of a head on one modality's features


@dataclass(frozen=True)
class Experiment:
    """Everything that the runs have in common."""

    train: Train
    items: Items
    test: Items
    labels: Array | None
    head: HeadClass
    splits: dict[int, Division]

    def run(self, subset: Subset, seed: int) -> Outcome:
        """Train on a subset, freeze, refit the head on the items held out, and test."""
        rows = self.splits[seed]
        probe, test = self.items[rows.probe].only(subset), self.test.only(subset)
        if not subset:  # the best constant
            before, after = ({"": np.zeros((len(part), 1))} for part in (probe, test))
            return self._probe(subset, before, after, probe, seed, width=0, parameters=0)
        train = self.items[rows.train].only(subset)
        model = self._trained(train, seed)
        before, after = (latents(model, part, subset) for part in (probe, test))
        own_head = {
            "parameters": parameter_count(model),
            "train_loss": own_risk(model, train),
            "test_risk": own_risk(model, test),
        }
        return self._probe(
            subset, before, after, probe, seed, width=sum(x.shape[1] for x in before.values()), **own_head
        )

    def _trained(self, train: Items, seed: int) -> Model:
        devices = sorted({x.get_device() for x in train.inputs.values() if x.is_cuda})
        with torch.random.fork_rng(devices=devices):  # the caller's random state is none of our business
            torch.manual_seed(seed)
            model = self.train(dict(train.inputs), train.targets, seed)
        if not callable(getattr(model, "encode", None)):
            raise TypeError(f"train() must return a model with encode(inputs) -> latent; got {type(model).__name__}")
        return model

    def _probe(
        self, subset: Subset, before: dict[str, Array], after: dict[str, Array], probe: Items, seed: int, **known: Any
    ) -> Outcome:
        targets, test = probe.host_targets(), self.test.host_targets()

        def fit(names: list[str]) -> tuple[Array, Array | None, float]:
            x, z = (np.concatenate([part[name] for name in names], 1) for part in (before, after))
            head = refit(self.head, x, targets, classification=self.labels is not None, seed=seed)
            return head.losses(z, test), head.correct(z, test), head.penalty

        losses, correct, penalty = fit(list(before))
        everything = len(subset) > 1 and set(subset) == set(self.items.inputs)
        encoders = {name: fit([name])[0] for name in before if everything and name in subset}
        return Outcome(losses, correct, penalty, encoders=encoders, **known)
