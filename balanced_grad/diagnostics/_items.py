"""Items to train, probe and test on, checked once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from balanced_grad.labels import unlabelled
from balanced_grad.subsets import Subset

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Items:
    """Aligned items: ``inputs[modality] (N, ...)`` and ``targets (N,)``, or ``(N, D)`` of a regression."""

    inputs: dict[str, Tensor]
    targets: Tensor

    @classmethod
    def check(cls, what: str, given: tuple[Mapping[str, Tensor], Tensor]) -> "Items":
        """Refuse anything but ``(inputs, targets)`` with aligned rows; leave out items without a target."""
        try:
            inputs, targets = given
            items = cls({name: torch.as_tensor(x) for name, x in inputs.items()}, torch.as_tensor(targets))
        except (AttributeError, TypeError, ValueError) as error:
            raise TypeError(f"{what}: give a pair ({{'audio': x, ...}}, targets) of tensors or arrays") from error
        if not items.inputs:
            raise ValueError(f"{what}: there is no modality in the inputs")
        if items.targets.ndim not in (1, 2) or not len(items.targets):
            raise ValueError(f"{what}: targets are (N,) or (N, D), N > 0; got {tuple(items.targets.shape)}")
        for name, x in items.inputs.items():
            if x.ndim == 0 or len(x) != len(items.targets):
                shape = tuple(x.shape)
                raise ValueError(f"{what}: {name!r} has shape {shape}, but there are {len(items.targets)} targets")
            items._require_finite(f"{what}: {name!r}", x)
        unknown = unlabelled(items.targets)
        if unknown.any():
            items = items[(~unknown).nonzero()[:, 0].cpu().numpy()]
        if not len(items):
            raise ValueError(f"{what}: no item is labelled, all targets are -100 or NaN")
        items._require_finite(f"{what}: the targets", items.targets)
        return items

    def _require_finite(self, what: str, x: Tensor) -> None:
        """Real and finite, or the number of items that are not."""
        if x.is_complex():
            raise ValueError(f"{what} must be real numbers, not {x.dtype}")
        bad = int((~torch.isfinite(x)).reshape(len(x), -1).any(1).sum())
        if bad:
            raise ValueError(
                f"{what} must be finite, but {bad} of {len(self)} items have NaN or infinity; impute it or leave "
                "these items out"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Array | slice) -> "Items":
        index = rows if isinstance(rows, slice) else torch.from_numpy(rows).to(self.targets.device)
        return Items(
            {name: x[index.to(x.device)] if isinstance(index, Tensor) else x[index] for name, x in self.inputs.items()},
            self.targets[index],
        )

    def only(self, subset: Subset) -> "Items":
        """The same items with the modalities of a subset."""
        return Items({name: self.inputs[name] for name in subset}, self.targets)

    def host_targets(self) -> Array:
        """Targets as an array, those of a regression in float64."""
        targets = self.targets.detach().cpu()
        return targets.double().numpy() if targets.is_floating_point() else targets.numpy().astype(np.int64)


def class_labels(train: Items, test: Items) -> Array | None:
    """The sorted labels of a classification (integer targets), or None for a regression (floating targets)."""
    if set(train.inputs) != set(test.inputs):
        raise ValueError(f"modalities of the items {sorted(train.inputs)} and of the test {sorted(test.inputs)} differ")
    if train.targets.is_floating_point() != test.targets.is_floating_point():
        raise TypeError("targets of the items and of the test: one is floating (regression), the other is not")
    if train.targets.shape[1:] != test.targets.shape[1:]:
        raise ValueError("targets of the items and of the test have different widths")
    if train.targets.is_floating_point():
        return None
    if train.targets.ndim != 1:
        raise ValueError("integer targets are class labels of shape (N,); give floating targets for a regression")
    labels = np.unique(train.host_targets())
    unseen = np.setdiff1d(test.host_targets(), labels)
    if len(unseen):
        raise ValueError(f"the test has labels that no training item has: {unseen.tolist()}")
    if len(labels) < 2:
        raise ValueError(f"all training items have the label {labels[0]}: there is nothing to learn")
    return labels
