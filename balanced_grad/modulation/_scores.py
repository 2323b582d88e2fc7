"""How well each modality alone predicts a batch: one positive number, larger is better."""

from collections.abc import Mapping

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.labels import Labels, Task, fits, read, require_tensor
from balanced_grad.presence import Present, checked_mask, nobody


class TaskScores(dict[str, Tensor | None]):
    """Scores that say of which task they are, since errors are compared otherwise than probabilities."""

    def __init__(self, scores: Mapping[str, Tensor | None], task: Task) -> None:
        super().__init__(scores)
        self.task = task


def scores(
    logits: Mapping[str, Tensor | None],
    labels: Tensor,
    task: Task = "classification",
    present: Present | None = None,
) -> TaskScores:
    """How well each modality alone predicts a batch: one detached scalar each, positive, larger is better.

        classification:  mean of softmax(f_m)[y]; of Σ_c y_c softmax(f_m)_c for shares y_c of the classes
        multilabel:      mean of y sigmoid(f_m) + (1 - y) sigmoid(-f_m)
        regression:      1 / mean (f_m - y)²

    The first is OGM's score divided by the batch size, which no ratio notices. The others are our reading: with
    them too, methods that compare modalities by ratios of scores see who is ahead.

    Args:
        logits: modality -> predictions from it alone, None for a missing one: ``(..., C)`` class logits, logits
            shaped like the labels, or predicted values shaped like the labels.
        labels: ``(...)`` class indices, of which -100 are left out, or shares of classes ``(..., C)``; labels in
            [0, 1], of which NaN and -100 are left out; or targets, of which NaN are left out.
        task: ``"classification"`` (default), ``"multilabel"`` or ``"regression"``.
        present: modality -> ``(B,)`` boolean, for modalities that some items lack, which are left out there.

    Returns:
        A score for each modality, in a dictionary with the attribute ``task``; None for a missing one; NaN for all,
        which modulates nothing, where nothing is labelled.

    Raises:
        TypeError, ValueError: for an unknown task, labels that are no tensor, logits whose shape does not fit the
            labels, and on the CPU for labels that the task does not have.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> sure, unsure = torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.zeros(2, 2)
        >>> bg.scores({"audio": sure, "video": unsure}, torch.tensor([0, 1]))
        {'audio': tensor(0.9999), 'video': tensor(0.5000)}
    """
    check_choice("task", task, Task)
    require_tensor(labels)
    masks = {} if present is None else present
    by_modality = {
        name: None if given is None else _score(name, given, labels, task, masks.get(name))
        for name, given in logits.items()
    }
    return TaskScores(by_modality, task)


@torch.no_grad()
def score(task: Task, logits: Tensor, labels: Labels) -> Tensor:
    """The score of one modality; NaN where nothing is labelled."""
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    values = labels.values
    if task == "regression":
        quality = (logits - values).square()
    elif task == "multilabel":
        quality = values * logits.sigmoid() + (1 - values) * (-logits).sigmoid()
    elif labels.soft:
        quality = (values * logits.softmax(-1)).sum(-1)
    else:
        quality = logits.softmax(-1).gather(-1, values.unsqueeze(-1)).squeeze(-1)
    mean = labels.mean(quality)
    if labels.counted is not None:
        mean = torch.where(labels.counted.any(), mean, torch.nan)
    return mean.reciprocal() if task == "regression" else mean


def _score(name: str, logits: Tensor, labels: Tensor, task: Task, mask: Tensor | None) -> Tensor | None:
    if not fits(task, labels, logits.shape):
        expected = "(..., classes)" if task == "classification" else "that of the labels"
        raise ValueError(
            f"logits of {name!r} have shape {tuple(logits.shape)} for {task} labels of shape {tuple(labels.shape)}; "
            f"their shape must be {expected}"
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    if labels.is_floating_point():
        wide = torch.promote_types(wide, labels.dtype)
    counted = read(task, labels, logits.to(wide))
    if mask is None:
        return score(task, logits, counted)
    here = checked_mask(name, mask, len(logits), logits.device)
    return None if nobody(here) else score(task, logits, counted.among(here))
