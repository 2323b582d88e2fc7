from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Seen:
    """Training losses of the latest steps, at most so many, and the names of all that ever were."""

    def __init__(self, steps: int) -> None:
        self.names: set[str] = set()
        self._steps: deque[tuple[tuple[str, ...], Tensor]] = deque(maxlen=steps)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, names: tuple[str, ...], losses: Tensor) -> None:
        """One step: losses ``(K,)``."""
        self.names.update(names)
        self._steps.append((names, losses))

    def clear(self) -> None:
        """Forget the losses, not the names."""
        self._steps.clear()

    def means(self) -> dict[str, Tensor]:
        """Mean of each loss over the steps in which it was there and finite; NaN of none."""
        if len({names for names, _ in self._steps}) == 1:
            means = _finite_mean([losses for _, losses in self._steps])
            return dict(zip(self._steps[0][0], means.unbind(), strict=True))
        by_name: dict[str, list[Tensor]] = {}
        for names, losses in self._steps:
            for name, loss in zip(names, losses.unbind(), strict=True):
                by_name.setdefault(name, []).append(loss)
        return {name: _finite_mean(values) for name, values in by_name.items()}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: few tensors, since each costs some hundred bytes there."""
        losses = _together([losses for _, losses in self._steps])
        return {
            "names": sorted(self.names),
            "steps": [list(names) for names, _ in self._steps],
            "losses": torch.cat(losses) if losses else None,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """What ``state`` gave."""
        self.names = set(state["names"])
        steps = [tuple(names) for names in state["steps"]]
        parts = state["losses"].split([len(names) for names in steps]) if steps else ()
        self._steps.clear()
        self._steps.extend(zip(steps, parts, strict=True))


def _finite_mean(steps: list[Tensor]) -> Tensor:
    """Mean over the steps, elementwise, of what is finite; on the device of the latest one."""
    values = torch.stack(_together(steps))
    finite = values.isfinite()
    return torch.where(finite, values, 0.0).sum(0) / finite.sum(0)


def _together(steps: list[Tensor]) -> list[Tensor]:
    """On one device: those of a loaded state begin on the CPU."""
    return [step.to(steps[-1].device) for step in steps]
