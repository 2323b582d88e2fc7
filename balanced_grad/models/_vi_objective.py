"""What is hidden, what is then predicted, and the losses of it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.models._vi_branch import Branch
from balanced_grad.models._vi_fill_in import NOTHING, FillIn, Revealed
from balanced_grad.models._vi_likelihoods import Likelihood
from balanced_grad.models._vi_presence import Batch, Known, both, either, mean_over, negated, settled, where_known

Kind = Literal["vi", "subsets", "entries", "predict-all", "autoencoder"]
Reduction = Literal["mean", "sum"]


class Objective(NamedTuple):
    """Losses, and the runs that they were taken from.

    Attributes:
        losses: modality -> scalar, for a balancer; without the modalities that nothing in the batch could teach.
        fills: the runs: by hidden modality, or the single one under the name of the objective.
    """

    losses: dict[str, Tensor]
    fills: dict[str, FillIn]


@dataclass(frozen=True)
class Settings:
    """See ``CrossModalVI.objective``."""

    kind: Kind
    reduction: Reduction
    reveal: float
    hide: float | None
    sparsity: float
    sparsity_target: float

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, Kind)
        check_choice("reduction", self.reduction, Reduction)
        if not 0 <= self.reveal < 1:
            raise ValueError(f"reveal={self.reveal!r}: give a share in [0, 1); something has to be left to predict")
        if self.reveal and self.kind == "autoencoder":
            raise ValueError("reveal has no meaning for kind='autoencoder', which hides nothing; leave it out")
        if self.reveal and self.kind == "entries":
            raise ValueError("reveal has no meaning for kind='entries'; say with hide= which share is to be predicted")
        if self.hide is not None and self.kind != "entries":
            raise ValueError(f"hide has no meaning for kind={self.kind!r}; it is the share hidden by kind='entries'")
        if self.hide is not None and not 0 < self.hide < 1:
            raise ValueError(f"hide={self.hide!r}: give a share in (0, 1); something has to be seen, something hidden")
        if not self.sparsity >= 0:
            raise ValueError(f"sparsity={self.sparsity!r}: give a weight >= 0")
        if not 0 < self.sparsity_target < 1:
            raise ValueError(f"sparsity_target={self.sparsity_target!r}: give a mean activation in (0, 1)")


class Run(NamedTuple):
    """One pass: what it may look at, and whose loss counts for which items."""

    name: str
    visible: dict[str, Known]
    targets: dict[str, Known]


def plan(kind: Kind, batch: Batch, generator: torch.Generator | None) -> list[Run]:
    """The passes of an objective."""
    known = batch.known
    if not batch.inputs:
        return []
    if kind in ("autoencoder", "entries"):
        visible: dict[str, Known] = known if kind == "autoencoder" else dict.fromkeys(known, False)
        return [Run(kind, visible, {name: flag for name, flag in known.items() if flag is not False})]
    if kind == "subsets":
        visible = _random_subset(batch, generator)
        return [Run(kind, visible, _lost(known, visible))]
    runs = []
    for name, flag in known.items():
        # An item with nothing else to predict from has no conditional: its marginal is what VI leaves out.
        items = both(flag, either(other for key, other in known.items() if key != name))
        if items is not False:
            every = known if kind == "predict-all" else (name,)
            targets = {key: items if key == name else both(known[key], items) for key in every}
            targets = {key: learners for key, learners in targets.items() if learners is not False}
            runs.append(Run(name, {**known, name: False}, targets))
    return runs


def evaluate(
    batch: Batch,
    branches: Mapping[str, Branch],
    settings: Settings,
    generator: torch.Generator | None,
    run: Callable[[Mapping[str, Known], Revealed], FillIn],
) -> Objective:
    """Run every pass; the loss of a modality is the sum of its losses over them."""
    losses: dict[str, Tensor] = {}
    fills: dict[str, FillIn] = {}
    for name, visible, targets in plan(settings.kind, batch, generator):
        revealed = NOTHING
        if settings.kind == "entries":
            hide = 0.5 if settings.hide is None else settings.hide
            revealed = show_entries(batch, branches, hide, generator)
        elif settings.reveal:
            revealed = reveal(batch, visible, branches, settings.reveal, generator)
        fills[name] = fill = run(visible, revealed)
        for target, items in targets.items():
            branch, x, shown = branches[target], batch.inputs[target], revealed.entries.get(target)
            parameters = fill.predictions.get(target)
            if parameters is None:  # of an observed modality, which the run had no reason to predict
                parameters = branch.predict(fill.hidden)
            loss = mean_over(items, item_losses(branch.likelihood, parameters, x, shown))
            if settings.sparsity:
                loss = loss + settings.sparsity / len(targets) * sparsity(fill.hidden, items, settings.sparsity_target)
            if settings.reduction == "mean":
                loss = loss / math.prod(branch.likelihood.entries)
            losses[target] = losses[target] + loss if target in losses else loss
    return Objective({name: losses[name] for name in branches if name in losses}, fills)


def reveal(
    batch: Batch,
    visible: Mapping[str, Known],
    branches: Mapping[str, Branch],
    limit: float,
    generator: torch.Generator | None,
) -> Revealed:
    """Choose entries of what is hidden: per item a share uniform in ``[0, limit]``, each entry with that chance."""
    entries = {}
    for name, items in _lost(batch.known, visible).items():
        x, shape = batch.inputs[name], branches[name].likelihood.entries
        share = limit * _rand((batch.size, *[1] * len(shape)), x, generator)
        chosen = _rand((batch.size, *shape), x, generator) < share
        entries[name] = where_known(items, chosen, torch.zeros_like(chosen))
    return Revealed(limit, batch.inputs, entries, _spread(entries, branches))


def show_entries(
    batch: Batch, branches: Mapping[str, Branch], hide: float, generator: torch.Generator | None
) -> Revealed:
    """Choose entries of everything, each hidden with the same chance.

    The gain of ``h⁰`` is ``M / Σ_k (share of k that is shown)``: ``M/|O|`` where whole modalities are.
    """
    entries = {}
    for name, items in batch.known.items():
        if items is not False:
            x = batch.inputs[name]
            chosen = _rand((batch.size, *branches[name].likelihood.entries), x, generator) >= hide
            entries[name] = where_known(items, chosen, torch.zeros_like(chosen))
    shown = torch.stack([chosen.flatten(1).to(batch.inputs[name].dtype).mean(1) for name, chosen in entries.items()])
    gain = torch.where(shown.sum(0) > 0, len(branches) / shown.sum(0), 1.0)
    return Revealed(0.0, batch.inputs, entries, _spread(entries, branches), gain.unsqueeze(1))


def _spread(entries: Mapping[str, Tensor], branches: Mapping[str, Branch]) -> dict[str, Tensor]:
    return {name: branches[name].likelihood.spread(chosen) for name, chosen in entries.items()}


def item_losses(likelihood: Likelihood, parameters: Tensor, x: Tensor, revealed: Tensor | None) -> Tensor:
    """``-log p(x | h)`` in nats of each item ``(B,)``, summed over the entries that were not revealed."""
    nll = likelihood.nll(parameters, x)
    if revealed is not None:
        nll = torch.where(revealed, 0.0, nll)
    return nll.flatten(1).sum(1)


def sparsity(hidden: Tensor, items: Known, target: float) -> Tensor:
    """``Σ_j KL(target ‖ mean h_j)`` in nats, over Bernoulli units."""
    mean = mean_over(items, hidden).clamp(1e-6, 1 - 1e-6)
    return (target * (target / mean).log() + (1 - target) * ((1 - target) / (1 - mean)).log()).sum()


def _lost(known: Mapping[str, Known], visible: Mapping[str, Known]) -> dict[str, Known]:
    """Which items have a modality that the run hides from them."""
    lost = {name: both(flag, negated(visible[name])) for name, flag in known.items()}
    return {name: items for name, items in lost.items() if items is not False}


def _random_subset(batch: Batch, generator: torch.Generator | None) -> dict[str, Known]:
    """Per item, a number of modalities to keep, uniform in ``1 .. n - 1`` of its ``n``, then which."""
    like = next(iter(batch.inputs.values()))
    every = torch.ones(batch.size, dtype=torch.bool, device=like.device)
    known = torch.stack([where_known(flag, every, ~every) for flag in batch.known.values()], 1)
    order = _rand(known.shape, like, generator).masked_fill(~known, 2.0).argsort(1).argsort(1)
    spare = (known.sum(1) - 1).clamp_min(0)
    keep = 1 + (_rand((batch.size,), like, generator) * spare).floor()
    visible = known & (order < keep.unsqueeze(1))
    return dict(zip(batch.known, map(settled, visible.unbind(1)), strict=True))


def _rand(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    where = like.device if generator is None else generator.device
    return torch.rand(shape, generator=generator, device=where).to(like.device)
