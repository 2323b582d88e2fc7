"""How good a prediction is, item by item: its loss, whether it is right, and what it decides."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from balanced_grad.labels import Labels, Task, entry_losses, fitted

Array = npt.NDArray[np.float64]


class Scores(NamedTuple):
    """Of ``B`` items: ``losses (B,)``, share of right entries ``hits (B,)`` (None of a regression), and decisions."""

    losses: Array
    hits: Array | None
    decisions: Array


def scores(task: Task, logits: Tensor, labels: Tensor) -> Scores:
    """Score predictions ``(B, ...)``; an item with several labels counts by the mean over those that count."""
    out, checked = fitted(task, "the model", logits, labels.to(logits.device), "write the task= that the labels have")
    decided = _decisions(task, out)
    hits = None if task == "regression" else _mean(_right(task, decided, checked), checked.counted)
    losses = _mean(entry_losses(task, out, checked), checked.counted)
    return Scores(losses, hits, decided.double().reshape(len(decided), -1).cpu().numpy())


def moved(task: Task, before: Array, after: Array) -> Array:
    """``(B,)``: share of an item's decisions that differ, or its mean squared change for a regression."""
    change: Array = np.square(after - before) if task == "regression" else (after != before).astype(np.float64)
    means: Array = change.mean(1)
    return means


def constant(task: Task, logits: Tensor) -> Tensor:
    """The mean prediction as logits ``(1, ...)``: what is known without any input."""
    if task == "classification":
        return logits.double().softmax(-1).mean(0, keepdim=True).log()
    if task == "multilabel":
        return logits.double().sigmoid().mean(0, keepdim=True).logit()
    return logits.double().mean(0, keepdim=True)


def _decisions(task: Task, out: Tensor) -> Tensor:
    if task == "classification":
        return out.argmax(-1)
    return (out > 0).to(out.dtype) if task == "multilabel" else out


def _right(task: Task, decided: Tensor, labels: Labels) -> Tensor:
    if task == "classification":
        return decided == (labels.values.argmax(-1) if labels.soft else labels.values)
    return decided.bool() == (labels.values > 0.5)


def _mean(entries: Tensor, counted: Tensor | None) -> Array:
    """``(B,)`` means over an item's entries that count."""
    flat = entries.double().reshape(len(entries), -1)
    if counted is None:
        return flat.mean(1).cpu().numpy()
    counts = counted.reshape(len(entries), -1)
    return (torch.where(counts, flat, 0).sum(1) / counts.sum(1).clamp_min(1)).cpu().numpy()
