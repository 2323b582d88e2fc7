from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from balanced_grad.evidence._estimators import Moments, State

_SAMPLE = 4096  # columns of which a typical variance is taken


class History:
    """Running statistics of one layer, a row for every loss that ever reached it.

    A loss that is missing keeps its row; non-finite values never enter; nothing waits for the device.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.names: list[str] = []
        self.tensors: dict[str, Tensor] = {}

    def rows(self, names: Sequence[str], like: Tensor) -> dict[str, Tensor]:
        """The statistics of these losses, ``(R, ...)`` each, on the device of ``like``; zeros for a new one."""
        rows = {key: kept.to(like.device) for key, kept in self.tensors.items()}
        if list(names) == self.names:
            return rows
        order = [self.names.index(name) if name in self.names else len(self.names) for name in names]
        return {key: torch.cat([kept, torch.zeros_like(kept[:1])])[order] for key, kept in rows.items()}

    def update(self, names: Sequence[str], before: State, after: State, ok: Tensor) -> None:
        """Take over the statistics ``after`` a step that began with ``before``, in the rows that are ``ok (R, 1)``."""
        new = [name for name in names if name not in self.names]
        self.names += new
        for key, value in after.items():
            value = torch.where(ok, value, before[key] if key in before else torch.zeros_like(value))
            if list(names) != self.names:
                kept = self.tensors.get(key, value[:0]).to(value.device)
                whole = torch.cat([kept, value.new_zeros(len(self.names) - len(kept), *value.shape[1:])])
                whole[[self.names.index(name) for name in names]] = value
                value = whole
            self.tensors[key] = value
        if new:
            for key, kept in self.tensors.items():
                self.tensors[key] = torch.cat([kept, kept.new_zeros(len(self.names) - len(kept), *kept.shape[1:])])

    def smooth(self, moments: Moments, before: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The variance ``(R, D)`` averaged over steps, bias corrected, and what to keep; NaN where never known."""
        new = moments.variance
        known = new.isfinite().all(1, keepdim=True)
        return self._average("variance", new, before, known)

    def mean(self, gradients: Tensor, before: State) -> tuple[Tensor, dict[str, Tensor]]:
        """The gradient ``(R, D)`` averaged over steps, bias corrected, and what to keep."""
        return self._average("signal", gradients, before, torch.ones_like(gradients[:, :1], dtype=torch.bool))

    def _average(self, key: str, new: Tensor, before: State, known: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        total = before.get(key, torch.zeros_like(new))
        weight = before.get(f"{key}_weight", torch.zeros_like(new[:, :1]))
        total = torch.where(known, self.decay * total + (1 - self.decay) * new, total)
        weight = torch.where(known, self.decay * weight + (1 - self.decay), weight)
        return total / weight, {key: total, f"{key}_weight": weight}

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {"names": list(self.names), "tensors": dict(self.tensors)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave."""
        self.names = list(state["names"])
        self.tensors = dict(state["tensors"])


def typical_variance(variance: Tensor, *, per_source: bool = False) -> Tensor:
    """Median of the positive finite variances, over all sources or ``(R, 1)`` of each; 1 where there is none.

    Of at most 4096 columns, evenly spread: a full median costs more than all the rest of the pass. Its sampling error
    is about 2 % for variances that spread over a factor of 3 (one standard deviation of the logarithm), which moves
    a weight by at most 0.5 %.
    """
    sample = variance[:, :: -(-variance.shape[1] // _SAMPLE)]
    hidden = torch.where(sample.isfinite() & (sample > 0), sample, torch.full_like(sample, torch.nan))
    median = hidden.nanmedian(1, keepdim=True).values if per_source else hidden.flatten().nanmedian().reshape(1, 1)
    return torch.where(median.isnan(), torch.ones_like(median), median)
