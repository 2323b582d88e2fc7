"""The loss of each task; its score is ``bg.scores``."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from balanced_grad.methods import Task


def task_loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy (labels of -100 left out), binary cross-entropy over all labels, or squared error."""
    if task == "classification":
        return cross_entropy(logits.flatten(0, -2), labels.flatten())
    if task == "multilabel":
        return binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    return mse_loss(logits, labels.to(logits.dtype))


def fitted(task: Task, name: str, logits: Tensor, labels: Tensor, cure: str) -> Tensor:
    """The logits, ``(B, 1)`` predictions in the shape of ``(B,)`` labels; refuses those that do not fit the labels."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels are a {type(labels).__name__}; give a tensor: torch.as_tensor(labels)")
    if task == "classification":
        _refuse_other_than_classes(labels)
        fits = logits.shape[:-1].numel() == labels.numel()
    else:
        single = logits.shape[-1:] == (1,) and logits.dim() == labels.dim() + 1
        logits = logits.squeeze(-1) if single else logits
        fits = logits.shape == labels.shape
    if not fits:
        wanted = "one label per row" if task == "classification" else "labels of the same shape"
        raise ValueError(
            f"the logits of {name!r} have shape {tuple(logits.shape)} and the labels {tuple(labels.shape)}, but "
            f"task={task!r} needs {wanted}; {cure}"
        )
    return logits


def _refuse_other_than_classes(labels: Tensor) -> None:
    if labels.dtype not in (torch.int64, torch.uint8):
        raise TypeError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, but task='classification' needs the index of "
            "each class: write labels.long(), or task='multilabel' or 'regression' if they are no classes"
        )
