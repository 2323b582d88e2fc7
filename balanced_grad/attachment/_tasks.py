"""The loss of each task; its score is ``bg.scores``."""

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


def fitted(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """``(B, 1)`` predictions in the shape of ``(B,)`` labels; others as they are."""
    single = task != "classification" and logits.shape[-1:] == (1,) and logits.dim() == labels.dim() + 1
    return logits.squeeze(-1) if single else logits
