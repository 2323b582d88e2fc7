import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.caching import cached

_REPORTED, _SAMPLE = 1 << 12, 1 << 15  # columns of which a report is made, and a typical variance taken


class History:
    """Running statistics of one layer, a row for every loss that ever reached it; a missing loss's row rests."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tensors: dict[str, Tensor] = {}

    def rows(self, names: Sequence[str], like: Tensor, **dtypes: torch.dtype) -> dict[str, Tensor]:
        """The statistics of these losses: those with a dtype ``(R, D)``, ``"weight" (R,)``, and what else is kept.

        Zeros for a new loss. The tensors themselves where they cover these losses in this order, to be changed in
        place; copies otherwise, to be ``put`` back.
        """
        kept = {key: tensor.to(like.device, dtypes.get(key)) for key, tensor in self.tensors.items()}
        for key, dtype in dtypes.items():
            if key not in kept:
                kept[key] = like.new_zeros(len(self.names), *like.shape[1:], dtype=dtype)
        kept.setdefault("weight", like.new_zeros(len(self.names)))
        if list(names) == self.names:
            self.tensors = kept
            return dict(kept)
        order = [self.names.index(name) if name in self.names else len(self.names) for name in names]
        return {key: torch.cat([rows, rows.new_zeros(1, *rows.shape[1:])])[order] for key, rows in kept.items()}

    def put(self, names: Sequence[str], rows: Mapping[str, Tensor]) -> None:
        """Keep these losses' statistics."""
        if list(names) == self.names:
            self.tensors.update(rows)
            return
        known, self.names = len(self.names), self.names + [name for name in names if name not in self.names]
        order = [self.names.index(name) for name in names]
        for key in {**self.tensors, **rows}:
            one = rows[key][:1] if key in rows else self.tensors[key][:1]
            whole = one.new_zeros(len(self.names), *one.shape[1:])
            if key in self.tensors:
                whole[:known] = self.tensors[key]
            if key in rows:
                whole[order] = rows[key]
            self.tensors[key] = whole

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {"names": list(self.names), "tensors": {key: tensor.clone() for key, tensor in self.tensors.items()}}

    @staticmethod
    def check(state: Mapping[str, Any], columns: int, where: str) -> None:
        """Refuse the ``state`` of a layer of another size, or one that is not whole."""
        rows, variance = len(state["names"]), state["tensors"].get("variance")
        if variance is not None and variance.shape[1:] != (columns,):
            raise ValueError(f"{where}: the state is of a layer of {variance.shape[1]} parameters, this has {columns}")
        for key, tensor in state["tensors"].items():
            if len(tensor) != rows:
                raise ValueError(f"{where}: the state has {len(tensor)} rows of {key!r} for {rows} losses")

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.names = list(state["names"])
        self.tensors = {key: tensor.clone() for key, tensor in state["tensors"].items()}
        if (exponent := self.tensors.pop("exponent", None)) is not None:  # until 0.2: float32 over powers of two
            self.tensors["variance"] = self.tensors["variance"].double() * exponent.double().exp2()


def sample(rows: Tensor, most: int = _REPORTED) -> Tensor:
    """At most 4096 columns of the rows, evenly spread whatever the width of the layer that they are flattened from."""
    return rows if rows.shape[1] <= most else rows[:, _columns(rows.shape[1], most, rows.device)]


@cached(maxsize=64)
def _columns(size: int, count: int, device: torch.device) -> Tensor:
    """Multiples of the golden ratio, modulo 1: no stride for the rows of a matrix to fall in step with."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    points = torch.arange(count, dtype=torch.float64, device="cpu") * ratio % 1.0
    return (points * size).long().sort().values.to(device)


def typical_variance(variance: Tensor, *, per_source: bool = False) -> Tensor:
    """Median of the positive finite variances, ``()`` over all sources or ``(R, 1)`` of each; 1 where there is none.

    Of at most 32768 columns, evenly spread: a full median costs more than all the rest of the pass. Where variances
    spread over a factor of 3 (one standard deviation of their logarithm), its sampling error is about 1 %, which
    moves a weight by at most 0.005.
    """
    some = sample(variance, _SAMPLE)
    hidden = torch.where(some.isfinite() & (some > 0), some, torch.full_like(some, torch.nan))
    median = hidden.nanmedian(1, keepdim=True).values if per_source else hidden.flatten().nanmedian()
    return torch.where(median.isnan(), torch.ones_like(median), median)
