"""Held-out items, gathered once from a loader: what the model is called with, by name, and the labels."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from balanced_grad.labels import IGNORED, Task
from balanced_grad.running import keeping_random_state

Rows = npt.NDArray[np.int64]
Batch = tuple[Mapping[str, Any], Tensor]
Unpack = Callable[[Any], Batch]
Modalities = Sequence[str] | Mapping[str, str | tuple[str, ...]]


@dataclass(frozen=True)
class Items:
    """``N`` aligned items: ``inputs[name]`` is a tensor ``(N, ...)`` or a list; ``labels (N, ...)``.

    ``keys`` says which inputs are of which modality; what is of none is given to the model as it is. ``numbers (N,)``
    are the items' places in the loader.
    """

    inputs: dict[str, Any]
    labels: Tensor
    keys: dict[str, tuple[str, ...]]
    batch_size: int
    positional: bool
    numbers: Rows

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def modalities(self) -> tuple[str, ...]:
        """In the user's order."""
        return tuple(self.keys)

    def first(self, count: int, order: Rows) -> "Items":
        """The first items in an order."""
        rows = order[:count]
        return Items(
            {name: taken(x, rows) for name, x in self.inputs.items()},
            self.labels[torch.from_numpy(rows)],
            self.keys,
            self.batch_size,
            self.positional,
            self.numbers[rows],
        )


def taken(x: Any, rows: Rows) -> Any:
    """These rows of a tensor or of a list."""
    return x[torch.from_numpy(rows)] if isinstance(x, Tensor) else [x[row] for row in rows.tolist()]


def gather(
    loader: Iterable[Any], modalities: Modalities | None, labels: str, unpack: Unpack | None, task: Task
) -> Items:
    """Read the loader once, to its end."""
    parts: list[Batch] = []
    positional = False
    with keeping_random_state(torch.device("cpu")):  # a loader draws a seed for its workers, if nothing else
        for batch in loader:
            if unpack is None:
                positional = isinstance(batch, tuple | list) and not (batch and isinstance(batch[0], Mapping))
            parts.append(_read(batch, modalities, labels) if unpack is None else unpack(batch))
    if not parts:
        raise ValueError(
            "the loader gave no batch; an iterator or generator that has been read is empty: give the DataLoader itself"
        )
    inputs, targets = _joined(parts)
    keys = _keys(inputs, modalities)
    known = _labelled(targets, task)
    items = Items(inputs, targets, keys, len(parts[0][1]), positional, np.arange(len(targets)))
    if not known.all():
        items = items.first(int(known.sum()), known.nonzero()[:, 0].numpy())
    _require_variety(items.labels, task)
    return items


def _read(batch: Any, modalities: Modalities | None, labels: str) -> Batch:
    if isinstance(batch, Mapping):
        if labels not in batch:
            raise ValueError(f"a batch has {list(batch)}, but no {labels!r}; name the labels' key in labels=")
        return {name: x for name, x in batch.items() if name != labels}, batch[labels]
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[0], Mapping):
        return batch[0], batch[1]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        names = list(modalities or ())
        if isinstance(modalities, Mapping) or len(names) != len(batch) - 1:
            raise ValueError(
                f"a batch is a {type(batch).__name__} of {len(batch)}: the last one is taken for the labels, so name "
                f"the {len(batch) - 1} inputs in modalities=[...], or give unpack=, a function from it to "
                "({'audio': x, ...}, labels)"
            )
        return dict(zip(names, batch[:-1], strict=True)), batch[-1]
    raise TypeError(
        f"a batch is a {type(batch).__name__}; give ({{'audio': x, ...}}, labels), a mapping with the labels in it, or "
        "unpack=, a function from a batch to the first of these"
    )


def _joined(parts: Sequence[Batch]) -> tuple[dict[str, Any], Tensor]:
    names = list(parts[0][0])
    for number, (inputs, labels) in enumerate(parts):
        if set(inputs) != set(names) or any(inputs[name] is None for name in names):
            missing = [name for name in names if inputs.get(name) is None]
            raise ValueError(
                f"batch {number} has no {', '.join(map(repr, missing)) or 'such inputs as the first'}: what a modality "
                "is worth is asked of items that have all of them; leave the others out of the loader"
            )
        for name in names:
            if len(inputs[name]) != len(labels):
                raise ValueError(
                    f"batch {number}: {name!r} has {len(inputs[name])} items, but there are {len(labels)} labels"
                )
    return {name: _cat(name, [inputs[name] for inputs, _ in parts]) for name in names}, _cat(
        "labels", [labels for _, labels in parts]
    )


def _cat(name: str, parts: Sequence[Any]) -> Any:
    if not isinstance(parts[0], Tensor | np.ndarray):
        return [x for part in parts for x in part]
    found = [torch.as_tensor(part).detach().cpu() for part in parts]
    odd = next((part.shape for part in found if part.shape[1:] != found[0].shape[1:]), None)
    if odd is not None:
        raise ValueError(
            f"{name!r} has items of shape {tuple(found[0].shape[1:])} in one batch and of {tuple(odd[1:])} in another, "
            "so they cannot change places; pad all of them to one length"
        )
    return torch.cat(found)


def _keys(inputs: Mapping[str, Any], modalities: Modalities | None) -> dict[str, tuple[str, ...]]:
    named = modalities if isinstance(modalities, Mapping) else {name: name for name in modalities or inputs}
    keys = {name: (key,) if isinstance(key, str) else tuple(key) for name, key in named.items()}
    unknown = [(name, key) for name, several in keys.items() for key in several if key not in inputs]
    if unknown or not keys:
        name, key = unknown[0] if unknown else ("", "")
        raise ValueError(
            f"modality {name!r} names the input {key!r}, but the model is called with {list(inputs)}; write "
            "modalities={'audio': 'audio_features', ...}, or the names of inputs alone"
        )
    return keys


def _labelled(labels: Any, task: Task) -> Tensor:
    """Which items have a label that counts."""
    if not isinstance(labels, Tensor):
        raise TypeError("labels are no tensors; give torch.as_tensor(labels)")
    known = ~labels.isnan() if labels.is_floating_point() else labels != IGNORED
    if task == "multilabel":
        known = known & (labels != IGNORED)
    return known.reshape(len(labels), -1).any(1)


def _require_variety(labels: Tensor, task: Task) -> None:
    if len(labels) < 2:
        raise ValueError(f"there are {len(labels)} labelled items: one item has no spread, give at least two")
    if task == "classification" and labels.is_floating_point():
        labels = labels.argmax(-1)
    values = labels[~labels.isnan()] if labels.is_floating_point() else labels[labels != IGNORED]
    if not (values != values[0]).any():
        what = "are of the class" if task == "classification" else "have the label"
        raise ValueError(
            f"all {len(labels)} held-out items {what} {values[0].tolist()}: nothing can be told apart; give "
            "items of two classes or more (does the loader follow the order of the classes?)"
        )
