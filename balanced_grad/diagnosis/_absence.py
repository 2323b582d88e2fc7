"""What stands in the place of a modality that is absent: another item's, zeros, the mean, or the user's own value."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from balanced_grad.diagnosis._items import Items, Rows, taken

Fill = Literal["zero", "mean", "none"]
Absent = Literal["permute"] | Fill
"""What stands for an absent modality: see `balanced_grad.diagnose`."""
Own = Tensor | float | None | Callable[[Any], Any]
REDUCED = "give absent={'audio': value, ...} with a value of your own"


class Absence(ABC):
    """A rule from items to inputs without some of the modalities."""

    draws: int = 1

    @abstractmethod
    def inputs(self, items: Items, absent: Sequence[str], draw: int) -> dict[str, Any]:
        """The changed inputs, by key."""


class Permuted(Absence):
    """Absent modalities come from other items, each from one of its own: every marginal stays, and every label.

    In a random order of the items, draw ``r`` gives item ``t`` the modality ``m`` of item ``t + shifts[r, m]``, so
    that each item is a donor exactly once per draw.
    """

    def __init__(self, order: Rows, shifts: Rows, modalities: Sequence[str]) -> None:
        self.draws = len(shifts)
        self._order = order
        self._place = np.argsort(order)
        self._shifts = {name: shifts[:, m] for m, name in enumerate(modalities)}

    @classmethod
    def drawn(cls, items: Items, draws: int, rng: np.random.Generator) -> "Permuted":
        """Distinct shifts for each modality; never an item's own."""
        count = min(draws, len(items) - 1)
        columns = [1 + rng.permutation(len(items) - 1)[:count] for _ in items.modalities]
        return cls(rng.permutation(len(items)), np.stack(columns, 1), items.modalities)

    def donors(self, modality: str, draw: int) -> Rows:
        """``(N,)``: whose modality each item gets."""
        donors: Rows = self._order[(self._place + self._shifts[modality][draw]) % len(self._order)]
        return donors

    def inputs(self, items: Items, absent: Sequence[str], draw: int) -> dict[str, Any]:
        """Those of the donors."""
        return {key: taken(items.inputs[key], self.donors(m, draw)) for m in absent for key in items.keys[m]}


class Filled(Absence):
    """Absent modalities are one value for all items."""

    def __init__(self, items: Items, absent: Fill | Mapping[str, Own]) -> None:
        if isinstance(absent, Mapping):
            missing = [name for name in items.modalities if name not in absent]
            unknown = [name for name in absent if name not in items.keys]
            if missing or unknown:
                raise ValueError(
                    f"absent= has {list(absent)}; give a value for each modality of {list(items.modalities)}"
                )
        self._values = {
            key: _filled(key, items.inputs[key], absent[name] if isinstance(absent, Mapping) else absent)
            for name, keys in items.keys.items()
            for key in keys
        }

    def inputs(self, items: Items, absent: Sequence[str], draw: int) -> dict[str, Any]:
        """The value, for every item."""
        return {key: self._values[key] for m in absent for key in items.keys[m]}


def _filled(key: str, x: Any, value: Any) -> Any:
    if value is None or (isinstance(value, str) and value == "none"):
        return None
    if callable(value):
        return value(x)
    if not isinstance(x, Tensor):
        raise TypeError(f"input {key!r} is a list, of which there are no zeros and no mean; {REDUCED}")
    if isinstance(value, str):
        if value == "zero":
            return torch.zeros_like(x)
        if not x.is_floating_point():
            raise TypeError(f"input {key!r} is {x.dtype}, which has no mean; write absent='permute', or {REDUCED}")
        return x.double().mean(0).to(x.dtype).expand_as(x)
    return torch.as_tensor(value, dtype=x.dtype).expand_as(x)


def absence(items: Items, absent: Absent | Mapping[str, Own], draws: int, rng: np.random.Generator) -> Absence:
    """The rule that the user chose."""
    if absent == "permute":
        return Permuted.drawn(items, draws, rng)
    if isinstance(absent, Mapping) or absent in get_args(Fill):
        return Filled(items, absent)
    raise ValueError(
        f"absent={absent!r}: choose 'permute', 'zero', 'mean' or 'none', or give a value per modality: "
        "{'audio': 0.0, 'video': None}"
    )
