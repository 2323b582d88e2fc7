"""Loss and accuracy with every subset of the modalities, as rows over the items whose mean is the risk."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from balanced_grad.diagnosis._absence import Absence, Permuted
from balanced_grad.diagnosis._items import Items
from balanced_grad.diagnosis._network import Network
from balanced_grad.diagnosis._scores import Array, constant, moved, scores
from balanced_grad.labels import Task
from balanced_grad.subsets import Subset


@dataclass(frozen=True)
class Outcome:
    """What the model does with a subset of the modalities.

    Attributes:
        losses: ``(1 + M, N)``: mean loss of each item over the draws, and what it adds as a donor of each modality.
        hits: the same for the accuracy; None for a regression.
        moved: share of decisions that differ from those with everything (regression: root mean square of the
            change, over the deviation of the predictions).
    """

    losses: Array
    hits: Array | None
    moved: float


def row_of(parts: Array, donors: Sequence[int]) -> Array:
    """``(N,)``: what each item adds, as itself and as a donor of these modalities."""
    row: Array = parts[0] + parts[[1 + place for place in donors]].sum(0)
    return row


class Game:
    """Outcomes of subsets, each measured once.

    With absent modalities of other items ``j`` the risk ``v(S) = E_ij L(x_i^S, x_j; y_i)`` varies with both. Item
    ``k`` therefore counts as itself, by its mean loss ``h`` over the ``R`` draws, and as a donor, by how much the
    losses of those that it was given to exceed their means:

        ψ(k) = h(k) + Σ_{m absent} d_m(k),   d_m(k) = Σ_r [L_r(i) - h(i)] / (R - 1),   m of k went to i in draw r

    Such a row has the mean ``v(S)``, and a bootstrap of it the spread of ``v(S)``; in a difference of two subsets, the
    donors are those of the smaller one. Draws are the same for every subset, so a modality that the model does not
    read changes nothing at all.
    """

    def __init__(self, network: Network, items: Items, task: Task, rule: Absence) -> None:
        self._network = network
        self._items = items
        self._task = task
        self._rule = rule
        self.everything = items.modalities
        self.outcomes: dict[Subset, Outcome] = {}
        losses, hits, self._decisions = self._pass((), 0)
        self._scale = float(self._decisions.std()) or 1.0
        self.outcomes[self.everything] = self._outcome(losses, hits, 0.0)

    def measure(self, subset: Subset) -> Outcome:
        """What is known, or else as many passes as there are draws."""
        if subset not in self.outcomes:
            absent = [name for name in self.everything if name not in subset]
            self.outcomes[subset] = self._constant() if self._silent(subset) else self._measured(absent)
        return self.outcomes[subset]

    def _measured(self, absent: Sequence[str]) -> Outcome:
        passes = [self._pass(absent, draw) for draw in range(self._rule.draws)]
        change = np.stack([moved(self._task, self._decisions, decisions) for *_, decisions in passes])
        hits = [hits for _, hits, _ in passes if hits is not None]
        return Outcome(
            self._influence(np.stack([losses for losses, *_ in passes])),
            self._influence(np.stack(hits)) if hits else None,
            self._distance(float(change.mean())),
        )

    def _pass(self, absent: Sequence[str], draw: int) -> tuple[Array, Array | None, Array]:
        changed = self._rule.inputs(self._items, absent, draw) if absent else {}
        what = f"with {' and '.join(map(repr, absent))} absent" if absent else "with all modalities"
        found = [
            scores(self._task, logits, self._items.labels[rows])
            for rows, logits in self._network.logits(self._items, changed, what)
        ]
        hits = [part.hits for part in found if part.hits is not None]
        return (
            np.concatenate([part.losses for part in found]),
            np.concatenate(hits) if hits else None,
            np.concatenate([part.decisions for part in found]),
        )

    def _influence(self, draws: Array) -> Array:
        """``(1 + M, N)`` from a value of each item in each draw ``(R, N)``."""
        mean: Array = draws[0] + np.mean(draws - draws[0], 0)  # exactly the value, where all draws have the same
        donated = np.zeros((len(self.everything), len(mean)))
        if isinstance(self._rule, Permuted) and len(draws) > 1:
            for row, name in zip(donated, self.everything, strict=True):
                for draw, values in enumerate(draws):
                    row[self._rule.donors(name, draw)] += values - mean
            donated /= len(draws) - 1
        return np.concatenate([mean[None], donated])

    def _distance(self, change: float) -> float:
        return float(np.sqrt(change)) / self._scale if self._task == "regression" else change

    def _silent(self, subset: Subset) -> bool:
        """Whether nothing at all would go in, which no model takes."""
        inputs = {} if subset else self._rule.inputs(self._items, self.everything, 0)
        return bool(inputs) and all(x is None for x in inputs.values())

    def _constant(self) -> Outcome:
        """The mean prediction, for every item."""
        parts = [logits.cpu() for _, logits in self._network.logits(self._items, {}, "with all modalities")]
        mean = constant(self._task, torch.cat(parts))
        found = scores(self._task, mean.expand(len(self._items), *mean.shape[1:]), self._items.labels)
        change = moved(self._task, self._decisions, found.decisions)
        return self._outcome(found.losses, found.hits, self._distance(float(change.mean())))

    def _outcome(self, losses: Array, hits: Array | None, change: float) -> Outcome:
        """Of one pass."""
        return Outcome(self._influence(losses[None]), None if hits is None else self._influence(hits[None]), change)
