"""Scores of several modalities beside each other: one row, its mean over processes and batches, its ratios."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from balanced_grad.capture import Processes

Scores = Mapping[str, Tensor | float | None]


def aligned(names: Sequence[str], given: Scores, like: Tensor, *, losses: bool = False) -> Tensor:
    """``(M,)`` detached scores, or ``losses``, in the order of ``names``, NaN for the missing ones."""
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"scores[{unknown[0]!r}]: there is no such modality; they are {list(names)}")
    found = {name: _scalar(name, score, like) for name, score in given.items() if score is not None}
    if not found:
        raise ValueError(f"no modality of {list(names)} has a score; give at least one, e.g. by bg.scores(...)")
    row = torch.stack([found[name] if name in found else like.new_full((), torch.nan) for name in names])
    if not losses and _on_host(row) and bool((row < 0).any()):
        values = {name: score.item() for name, score in found.items()}
        raise ValueError(f"scores={values}: a score is positive, larger is better; for errors give 1 / error")
    return row


def _on_host(values: Tensor) -> bool:
    return values.is_cpu


def _scalar(name: str, score: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(score, Tensor):
        return like.new_full((), score)
    if score.numel() != 1:
        raise ValueError(f"scores[{name!r}] has shape {tuple(score.shape)}; reduce it to one scalar, e.g. by mean()")
    return score.detach().reshape(()).to(like)


def summable(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with zero for the missing ones, and which are there, as numbers: ready to be added up."""
    there = scores.isfinite()
    return torch.where(there, scores, 0), there.to(scores)


def across_ranks(scores: Tensor, processes: Processes) -> Tensor:
    """Mean over the processes that have one: all processes must modulate alike, whatever their share of the batch."""
    if processes.size == 1:
        return scores
    processes.agree("scores")  # a process that failed says so here, and nobody waits for its scores
    both = torch.stack(summable(scores))
    processes.sum(both)
    return both[0] / both[1]


class Window:
    """Mean scores of the batches that go into one optimizer step: what one large batch would have shown.

    Scores that are made of losses, ``exp(-L)``, are averaged as losses.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._losses = False
        self._closed = False

    def observe(self, values: Tensor | None, *, losses: bool = False) -> None:
        """Add a batch of scores, or of losses; the first one after ``close`` begins anew."""
        if self._closed:
            self._sums, self._closed = None, False
        if values is None:
            return
        if self._sums is None:
            self._losses = losses
        elif losses != self._losses:  # both kinds in one step: as the first one
            values = torch.exp(-values) if losses else -torch.log(values)
        sums = torch.stack(summable(values))
        self._sums = sums if self._sums is None else self._sums + sums

    def close(self) -> Tensor | None:
        """The mean scores ``(M,)``, NaN where no batch had one; None if nothing was observed."""
        self._closed = True
        if self._sums is None:
            return None
        mean = self._sums[0] / self._sums[1]
        return torch.exp(-mean) if self._losses else mean


def relative_to_others(scores: Tensor) -> Tensor:
    """``(M,)`` each score over the mean of the others that are there; NaN for a missing or a single one."""
    others = scores.isfinite() & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    mean = torch.where(others, scores, 0).sum(-1) / others.sum(-1)
    return torch.where(scores.isfinite(), scores, torch.nan) / mean
