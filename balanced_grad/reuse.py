"""Weights that are solved for in one step of several, and used again in the steps between."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from balanced_grad.state import Stateful


class Reuse(Stateful, nn.Module):
    """The weights of the last solve, by the name of the loss, and how many steps they serve yet.

    They stay tensors on their device. A weight that was never solved for, or was not finite then, is 1: the loss's
    weight in the plain sum.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._left = 0
        self._weights: dict[str, Tensor] = {}

    @property
    def serves(self) -> bool:
        """Whether this step goes without a solve."""
        return self._left > 0

    def keep(self, names: Sequence[str], weights: Tensor) -> None:
        """Those of a step that was solved; the next ``every - 1`` go without."""
        for name, weight in zip(names, weights.detach().unbind(0), strict=True):
            before = self._weights.get(name, torch.ones_like(weight))
            self._weights[name] = torch.where(weight.isfinite(), weight, before.to(weight))
        self._left = self.every - 1

    def use(self, names: Sequence[str], losses: Tensor) -> Tensor:
        """``(K,)`` float64 weights for a step without a solve."""
        self._left -= 1
        one = losses.new_ones((), dtype=torch.float64)
        self._weights |= {name: weight.to(one) for name, weight in self._weights.items()}  # a state is read on the CPU
        return torch.stack([self._weights.get(name, one) for name in names])

    def state(self) -> dict[str, Any]:
        """For ``state_dict``."""
        return {"left": self._left, "weights": dict(self._weights)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; with another ``every``, from a solve at the latest after that many steps."""
        self._left, self._weights = min(state["left"], self.every - 1), dict(state["weights"])
