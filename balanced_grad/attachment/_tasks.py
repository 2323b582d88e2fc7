"""The loss of each task; its score is ``bg.scores``."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from balanced_grad.labels import Labels, Task, fits, read, require_tensor


def task_loss(task: Task, logits: Tensor, labels: Labels) -> Tensor:
    """Mean cross-entropy, binary cross-entropy or squared error over the labels that count."""
    if task == "classification":
        classes = logits.shape[-1:] if labels.soft else ()
        targets = labels.values.reshape(-1, *classes)
        losses = cross_entropy(logits.flatten(0, -2), targets, reduction="none").reshape(logits.shape[:-1])
    elif task == "multilabel":
        losses = binary_cross_entropy_with_logits(logits, labels.values, reduction="none")
    else:
        losses = mse_loss(logits, labels.values, reduction="none")
    return labels.mean(losses)


def fitted(task: Task, name: str, logits: Tensor, labels: Tensor, cure: str) -> tuple[Tensor, Labels]:
    """Logits and labels in each other's shape; refuses those that do not fit, and labels outside the task's domain."""
    require_tensor(labels)
    single = logits.shape[-1:] == (1,) and logits.dim() == labels.dim() + 1
    ready = logits.squeeze(-1) if single and task != "classification" else logits
    items = ready.shape[:-1]
    flat = labels.shape in ((*items, 1), (items.numel(),)) and task == "classification"
    shaped = labels.reshape(items) if flat and not fits(task, labels, ready.shape) else labels
    if not fits(task, shaped, ready.shape):
        wanted = "one label per row" if task == "classification" else "labels of the same shape"
        raise ValueError(
            f"the logits of {name!r} have shape {tuple(ready.shape)} and the labels {tuple(labels.shape)}, but "
            f"task={task!r} needs {wanted}; {cure}"
        )
    return ready, read(task, shaped, ready)
