"""How well each modality alone predicts a batch: one positive number, larger is better."""

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Task = Literal["classification", "multilabel", "regression"]
_IGNORED = -100  # the label that torch's cross-entropy leaves out by default


def scores(
    logits: Mapping[str, Tensor | None], labels: Tensor, task: Task = "classification"
) -> dict[str, Tensor | None]:
    """How well each modality alone predicts a batch: one detached scalar each, positive, larger is better.

        classification:  mean of softmax(f_m)[y]
        multilabel:      mean of sigmoid(f_m) where the label is 1, of 1 - sigmoid(f_m) where it is 0
        regression:      1 / mean (f_m - y)²

    The first is OGM's score divided by the batch size, which no ratio notices. The others are our reading: with
    them too, methods that compare modalities by ratios of scores see who is ahead.

    Args:
        logits: modality -> predictions from it alone, None for a missing one: ``(..., C)`` class logits, logits
            shaped like the labels, or predicted values shaped like the labels.
        labels: ``(...)`` classes, of which -100 are left out; 0 or 1; or targets.
        task: ``"classification"`` (default), ``"multilabel"`` or ``"regression"``.

    Raises:
        ValueError: for an unknown task, or logits whose shape does not fit the labels.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> sure, unsure = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.zeros(2, 2)
        >>> bg.scores({"audio": sure, "video": unsure}, torch.tensor([0, 1]))
        {'audio': tensor(0.9999), 'video': tensor(0.5000)}
    """
    if task not in get_args(Task):
        raise ValueError(f"task={task!r}: choose one of {get_args(Task)}")
    with torch.no_grad():
        return {name: None if given is None else _score(name, given, labels, task) for name, given in logits.items()}


def _score(name: str, logits: Tensor, labels: Tensor, task: Task) -> Tensor:
    wanted = labels.shape if task != "classification" else (*labels.shape, logits.shape[-1])
    if logits.shape != wanted:
        expected = "(..., classes)" if task == "classification" else "that of the labels"
        raise ValueError(
            f"logits of {name!r} have shape {tuple(logits.shape)} for {task} labels of shape {tuple(labels.shape)}; "
            f"their shape must be {expected}"
        )
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    if task == "classification":
        kept = labels != _IGNORED
        right = logits.softmax(-1).gather(-1, (labels * kept).unsqueeze(-1)).squeeze(-1)
        return (right * kept).sum() / kept.sum()
    if task == "multilabel":
        return logsigmoid(torch.where(labels > 0, logits, -logits)).exp().mean()
    return (logits - labels).square().mean().reciprocal()
