"""Scores of several modalities beside each other: one row, its mean over processes and batches, its ratios.

In a row, NaN stands for a modality without a score, and for nothing else; an infinite score is that of a perfect one.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from balanced_grad import host
from balanced_grad.capture import Processes
from balanced_grad.notices import Notices

Scores = Mapping[str, Tensor | float | None]
Kind = Literal["score", "loss", "error"]  # what a row holds, and is averaged as: s, L = -log s, or e = 1 / s


def aligned(names: Sequence[str], given: Scores, like: Tensor, kind: Kind = "score") -> Tensor:
    """``(M,)`` detached scores, losses or errors in the order of ``names``, NaN for the missing ones."""
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"scores[{unknown[0]!r}]: there is no such modality; they are {list(names)}")
    there = {name: score for name, score in given.items() if score is not None}
    if not there:
        raise ValueError(f"no modality of {list(names)} has a score; give at least one, e.g. by bg.scores(...)")
    dtype = _common_dtype(like, [score for score in there.values() if isinstance(score, Tensor)])
    like = like.new_empty((), dtype=dtype)
    scalars = {name: _scalar(name, score, like) for name, score in there.items()}
    row = torch.stack([scalars[name] if name in scalars else like.new_full((), torch.nan) for name in names])
    if kind != "loss" and host.on_host(row) and bool((row < 0).any()):
        values = {name: score.item() for name, score in scalars.items()}
        if kind == "error":
            raise ValueError(f"losses={values}: with task='regression' they are taken for errors, which are positive")
        raise ValueError(f"scores={values}: a score is positive, larger is better; for errors give 1 / error")
    return row


def _common_dtype(like: Tensor, scores: Sequence[Tensor]) -> torch.dtype:
    """That of the most digits and range, float32 at least: a half-precision score would be rounded to 0 or infinity."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    for score in scores:
        dtype = torch.promote_types(dtype, score.dtype)
    return dtype


def report_nan(row: Tensor, names: Sequence[str], there: Scores, who: str, notices: Notices) -> None:
    """Say once that a modality beside others has a score which is no number; on a device nobody waits for it.

    Where all are NaN, as those of a batch without labels are, there is nothing to compare.
    """
    if not host.on_host(row) or not bool(row.isnan().any()) or bool(row.isnan().all()):
        return
    for name, score in zip(names, row.unbind(), strict=True):
        if there.get(name) is not None and bool(score.isnan()):
            notices.say(
                ("nan", name),
                f"the score of {name!r} is NaN, so {who} leaves its gradient as it is and compares the others among "
                "themselves; where a batch has no item of it, leave its key out or give None",
            )


def _scalar(name: str, score: Tensor | float, like: Tensor) -> Tensor:
    if not isinstance(score, Tensor):
        return like.new_full((), score)
    if score.numel() != 1:
        raise ValueError(f"scores[{name!r}] has shape {tuple(score.shape)}; reduce it to one scalar, e.g. by mean()")
    return score.detach().reshape(()).to(like)


def summable(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with zero for the missing ones, and which are there, as numbers: ready to be added up."""
    there = ~scores.isnan()
    return torch.where(there, scores, 0), there.to(scores)


def across_ranks(scores: Tensor, processes: Processes) -> Tensor:
    """Mean over the processes that have one: all processes must modulate alike, whatever their share of the batch."""
    if processes.size == 1:
        return scores
    processes.agree("scores")  # a process that failed says so here, and nobody waits for its scores
    both = torch.stack(summable(scores))
    processes.sum(both)
    return both[0] / both[1]


class ScoreWindow:
    """Mean scores of the batches that go into one optimizer step: what one large batch would have shown.

    Scores that are made of losses or errors are averaged as such.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._kind: Kind = "score"
        self._closed = False

    def observe(self, values: Tensor | None, kind: Kind = "score") -> None:
        """Add a row; the first one after ``close`` begins anew."""
        if self._closed:
            self._sums, self._closed = None, False
        if values is None:
            return
        if self._sums is None:
            self._kind = kind
        elif kind != self._kind:  # two kinds in one step: as the first one
            values = converted(values, kind, self._kind)
        sums = torch.stack(summable(values))
        self._sums = sums if self._sums is None else self._sums + sums

    def close(self) -> Tensor | None:
        """The mean scores ``(M,)`` up to a common factor, NaN where no batch had one; None if nothing was observed."""
        self._closed = True
        return None if self._sums is None else comparable(self._sums[0] / self._sums[1], self._kind)


def converted(values: Tensor, kind: Kind, into: Kind) -> Tensor:
    """A row as one of another kind."""
    scores = {"score": values, "loss": torch.exp(-values), "error": 1 / values}[kind]
    return {"score": scores, "loss": -torch.log(scores), "error": 1 / scores}[into]


def comparable(row: Tensor, kind: Kind) -> Tensor:
    """The scores of a row up to a common factor: ``exp(-L)`` of losses would leave the range of its numbers."""
    if kind != "loss":
        return converted(row, kind, "score")
    least = torch.where(row.isnan(), torch.inf, row).amin()
    return torch.where(row == least, 1.0, torch.exp(least - row))


def relative_to_others(scores: Tensor) -> Tensor:
    """``(M,)`` each score over the mean of the others that are there; NaN for a missing or a single one."""
    there = ~scores.isnan()
    best = torch.where(there, scores, 0).amax()
    scores = torch.where(scores == best, 1.0, scores / best)  # also where the best is 0 or infinite
    others = there & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores / (torch.where(others, scores, 0).sum(-1) / others.sum(-1))


def tanh_of(alpha: float, excess: Tensor) -> Tensor:
    """``tanh(α x)``, also where ``x`` is infinite and ``α`` zero."""
    return torch.tanh(alpha * excess.clamp_max(torch.finfo(excess.dtype).max))
