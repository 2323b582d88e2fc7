"""What labels may be, for every entry point: the form of each task, what does not count, what is refused by name.

    classification   class indices, of which -100 do not count, or shares of classes as ``cross_entropy`` takes them
    multilabel       shares in [0, 1] (0, 1, or smoothed), of which NaN and -100 do not count
    regression       finite values, of which NaN do not count

Labels on a device are not looked at, which would wait for it: there a mask leaves out what does not count, an index
out of range is torch's own error, and any other value outside the domain makes its loss NaN.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

Task = Literal["classification", "multilabel", "regression"]
"""What labels are: a class per item, a yes or no per class, numbers."""
IGNORED = -100  # the label that torch's cross-entropy leaves out by default
_ROUNDING = 1e-2  # of shares of classes that sum to one, in half precision


class Labels(NamedTuple):
    """Checked labels: finite wherever they count or not.

    ``values`` are ``(*items)`` class indices, ``(*items, C)`` shares of classes, or ``(*entries)``. ``counted`` is a
    boolean per item or entry; None: it is known on the host that all count. ``soft``: they are shares of classes.
    """

    values: Tensor
    counted: Tensor | None
    soft: bool = False

    @property
    def nothing(self) -> bool:
        """Whether it is known on the host that nothing counts."""
        return self.counted is not None and looked_at(self.counted) and not _read(self.counted.any())

    def among(self, items: Tensor) -> "Labels":
        """The same labels, of which only those of some items ``(B,)`` count."""
        shape = self.values.shape[: -1 if self.soft else None]
        counted = items.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
        return self._replace(counted=counted if self.counted is None else counted & self.counted)

    def mean(self, losses: Tensor, share: Tensor | None = None) -> Tensor:
        """Mean of losses, weighted by their share, over what counts; 0 with zero gradient where nothing does."""
        if self.counted is not None:
            losses = torch.where(self.counted, losses, 0.0)
            share = self.counted if share is None else share * self.counted
        if share is None:
            return losses.mean()
        wide = torch.promote_types(losses.dtype, torch.float32)
        total = share.sum(dtype=wide)
        return ((losses * share).sum(dtype=wide) / torch.where(total > 0, total, 1.0)).to(losses.dtype)


def looked_at(labels: Tensor) -> bool:
    """Whether to look at the values of a tensor: on the CPU, and not while a graph is traced."""
    return labels.is_cpu and type(labels) in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling()


def unlabelled(labels: Tensor) -> Tensor:
    """Which rows ``(N,)`` do not count: class indices of -100, or values of which one is NaN."""
    unknown = labels.isnan() if labels.is_floating_point() else labels == IGNORED
    return unknown.flatten(1).any(1) if unknown.dim() > 1 else unknown


def entry_losses(task: Task, logits: Tensor, labels: Labels) -> Tensor:
    """Cross-entropy per item, binary cross-entropy or squared error per entry, of ``fitted`` logits and labels."""
    if task == "classification":
        classes = logits.shape[-1:] if labels.soft else ()
        targets = labels.values.reshape(-1, *classes)
        return cross_entropy(logits.flatten(0, -2), targets, reduction="none").reshape(logits.shape[:-1])
    if task == "multilabel":
        return binary_cross_entropy_with_logits(logits, labels.values, reduction="none")
    return mse_loss(logits, labels.values, reduction="none")


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``cross_entropy(logits, labels)`` of logits ``(B, C, ...)`` and checked labels; NaN where none counts."""
    require_tensor(labels)
    last = logits.movedim(1, -1)
    shaped = labels.movedim(1, -1) if labels.shape == logits.shape else labels
    if not fits("classification", shaped, last.shape):
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit logits of shape {tuple(logits.shape)}; give one class "
            f"index for each item, {tuple(last.shape[:-1])}"
        )
    checked = read("classification", shaped, last)
    targets = checked.values.movedim(-1, 1) if checked.soft else checked.values
    mean = checked.mean(cross_entropy(logits, targets, reduction="none"))
    return mean if checked.counted is None else torch.where(checked.counted.any(), mean, torch.nan)


def fits(task: Task, labels: Tensor, predictions: torch.Size) -> bool:
    """Whether labels have the shape of predictions, ``(*items, C)`` of a classification or ``(*entries)``."""
    if task != "classification":
        return labels.shape == predictions
    return labels.shape == predictions[:-1] or (labels.is_floating_point() and labels.shape == predictions)


def require_tensor(labels: object) -> None:
    """Refuse arrays and lists, as torch's losses do."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels are a {type(labels).__name__}; give a tensor: torch.as_tensor(labels)")


def read(task: Task, labels: Tensor, predictions: Tensor) -> Labels:
    """Labels of a shape that ``fits``, in the form of the predictions, with a filler where they do not count.

    Raises:
        TypeError, ValueError: for another device, a dtype without meaning, and on the CPU a value outside the domain.
    """
    if labels.device != predictions.device:
        raise ValueError(f"labels are on {labels.device}, predictions on {predictions.device}; write labels.to(device)")
    if labels.is_complex():
        raise TypeError(f"labels are {labels.dtype}; give real numbers")
    if task == "classification":
        soft = labels.is_floating_point() and labels.shape == predictions.shape
        return _shares(labels, predictions) if soft else _classes(labels, predictions.shape[-1])
    values = labels.detach().to(predictions.dtype)
    unknown = values.isnan()
    if task == "multilabel":
        unknown = unknown | (values == IGNORED)
        values = _bounded(values, unknown)
        if (value := _first(labels, values.isnan() & ~unknown)) is not None:
            raise ValueError(
                f"a label is {value:g}, but labels of task='multilabel' are between 0 and 1; write -100 or NaN for an "
                f"entry that is unknown: labels.masked_fill(labels == {value:g}, -100)"
            )
    elif (value := _first(labels, values.isinf())) is not None:
        raise ValueError(f"a label is {value:g}, which is not finite in {values.dtype}; write NaN for what is unknown")
    return Labels(values.masked_fill(unknown, 0.0), _counted(~unknown))


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


def _classes(labels: Tensor, classes: int) -> Labels:
    if labels.is_floating_point() or labels.dtype is torch.bool:
        raise TypeError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, but task='classification' needs class indices "
            "(or the share of every class, in the shape of the logits): write labels.long(), or task='multilabel' or "
            "'regression' if they are no classes"
        )
    values = labels.long()  # first: in uint8, 156 equals -100
    counted = values != IGNORED
    if (value := _first(values, counted & ((values < 0) | (values >= classes)))) is not None:
        raise ValueError(
            f"a label is {value:g}, but the indices of {classes} classes are 0 to {classes - 1}; if it stands for what "
            f"does not count, write labels.long().masked_fill(labels == {value:g}, -100)"
        )
    return Labels(values.masked_fill(~counted, 0), _counted(counted))


def _shares(labels: Tensor, predictions: Tensor) -> Labels:
    """Shares of classes, ``(*items, C)``; an item with a share of NaN or -100 does not count."""
    values = labels.detach().to(torch.promote_types(predictions.dtype, torch.float32))
    unknown = (values.isnan() | (values == IGNORED)).any(-1)
    values = _bounded(values, unknown.unsqueeze(-1))
    sums = values.sum(-1)
    wrong = _first(labels, values.isnan() & ~unknown.unsqueeze(-1))
    total = _first(sums, ~((sums - 1).abs() <= _ROUNDING) & ~unknown)
    if wrong is not None or total is not None:
        what = f"sum to 1 per item, not to {total:g}" if wrong is None else f"are between 0 and 1, not {wrong:g}"
        raise ValueError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}, so shares of the classes, which {what}; for "
            "several classes per item write task='multilabel', for class indices labels.argmax(-1)"
        )
    return Labels(values.masked_fill(unknown.unsqueeze(-1), 0.0), _counted(~unknown), soft=True)


def _bounded(values: Tensor, unknown: Tensor) -> Tensor:
    """NaN where a share is outside [0, 1]."""
    return values.masked_fill(~((values >= 0) & (values <= 1)) & ~unknown, torch.nan)


def _counted(counted: Tensor) -> Tensor | None:
    return None if looked_at(counted) and counted.numel() and _read(counted.all()) else counted


def _first(labels: Tensor, wrong: Tensor) -> float | None:
    """The first label that is wrong, where looking does not wait for a device."""
    return float(labels[wrong][0]) if looked_at(wrong) and _read(wrong.any()) else None


def _read(flag: Tensor) -> bool:
    """A flag on the CPU: ``tolist`` takes it from memory, past any mode that watches operators."""
    return bool(flag.tolist())
