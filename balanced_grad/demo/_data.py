"""What the demo trains on: three splits of aligned modalities, standardised with training statistics only."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
SPLITS = ("train", "val", "test")


class DemoError(Exception):
    """A request the demo cannot serve; the message says what is possible instead."""


@dataclass(frozen=True)
class Split:
    """Aligned items.

    ``inputs[modality]`` is ``(n, d)`` or ``(n, 1, height, width)``, ``labels`` is ``(n,)``.
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> "Split":
        return Split({name: x[index] for name, x in self.inputs.items()}, self.labels[index])

    def to(self, device: torch.device) -> "Split":
        """Copy the items to a device."""
        return Split({name: x.to(device) for name, x in self.inputs.items()}, self.labels.to(device))


class Groups(NamedTuple):
    """Items that belong together, such as the recordings of one person: they are no independent evidence.

    ``kind`` is their name in the plural, ``codes[split]`` has the group of each item, ``(n,)``.
    """

    kind: str
    codes: Mapping[str, Array]


@dataclass(frozen=True)
class Dataset:
    """A multi-modal classification set in three disjoint splits; without ``groups`` every item is on its own."""

    name: str
    title: str
    classes: int
    train: Split
    val: Split
    test: Split
    groups: Groups | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of one item of each modality."""
        return {name: tuple(x.shape[1:]) for name, x in self.train.inputs.items()}

    def to(self, device: torch.device) -> "Dataset":
        """Copy the data to a device."""
        return replace(self, **{split: getattr(self, split).to(device) for split in SPLITS})


def build(
    name: str,
    title: str,
    views: Mapping[str, Array],
    labels: Array,
    split: Array,
    groups: tuple[str, Array] | None = None,
) -> Dataset:
    """Cut whole arrays by their split codes (0 train, 1 val, 2 test) and scale them.

    ``groups`` are what the groups are called in the plural, and the group of each item, ``(n,)``, of any type.
    """
    scaled = {view: torch.from_numpy(scale(x, split == 0)) for view, x in views.items()}
    targets = torch.from_numpy(labels.astype(np.int64))
    rows = (torch.from_numpy(np.flatnonzero(split == code)) for code in range(len(SPLITS)))
    train, val, test = (Split(scaled, targets)[each] for each in rows)
    together = None if groups is None else _grouped(*groups, split)
    return Dataset(name, title, int(labels.max()) + 1, train, val, test, together)


def _grouped(kind: str, members: Array, split: Array) -> Groups:
    codes = np.unique(members, return_inverse=True)[1]
    return Groups(kind, {part: codes[split == code] for code, part in enumerate(SPLITS)})


def scale(x: Array, train: Array) -> Array:
    """Standardised by the training items, images with a channel axis.

    Images, bytes too: left in [0, 1] they are nearly all of one sign, and an encoder's first features hardly vary.

    ``x`` is ``(n, d)`` or ``(n, height, width)``, ``train`` the mask of the training items.
    """
    x = x.astype(np.float64)
    axes = 0 if x.ndim == 2 else None  # an image keeps its relative brightness
    mean, std = x[train].mean(axes), np.asarray(x[train].std(axes))
    # A feature that never varies in training says nothing; divided by almost zero it would shout in test.
    x = (x - mean) / np.where(std > 1e-6, std, 1.0)
    return (x if x.ndim == 2 else x[:, None]).astype(np.float32)
