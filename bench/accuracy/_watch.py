"""What is recorded of training: weights, conflicts, and how far the optimizer moved each encoder."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench.accuracy._objectives import JOINT


class Watch:
    """What is seen while training.

    Per epoch: the factors of a guard at its end, the mean weight of each loss (0 in a step without it), or coefficient
    of each encoder where a method has them, and each encoder's update ratio ``|Δθ| / |θ|`` in the first step, after the
    optimizer. Over all steps: the conflict rate, a conflict being a negative inner product of the joint loss's gradient
    and a uni-modal one's, where they meet.
    """

    def __init__(self) -> None:
        self.weights: dict[str, list[float]] = {}
        self.update_ratio: dict[str, list[float]] = {}
        self.factors: dict[str, list[float]] = {}
        self._weights: list[dict[str, Tensor]] = []
        self._conflicts: list[Tensor] = []
        self._first = True
        self._last: bg.Step | None = None

    @property
    def conflict(self) -> float | None:
        """Percent of steps and modalities in conflict; None where no Gramian was taken."""
        return 100 * torch.cat(self._conflicts).double().mean().item() if self._conflicts else None

    @contextmanager
    def update_of(self, model: LateFusion) -> Iterator[None]:
        """Measure the step inside, if it is the first of its epoch."""
        if not self._first:
            yield
            return
        self._first = False
        before = [flat(encoder) for encoder in model.encoders]
        yield
        for name, old, encoder in zip(model.names, before, model.encoders, strict=True):
            ratio = ((flat(encoder) - old).norm() / old.norm()).item()
            self.update_ratio.setdefault(name, []).append(ratio)

    def see(self, balancer: bg.Balancer | None) -> None:
        """Take note of a step."""
        self._last = last = None if balancer is None else balancer.last
        if last is None:
            return
        if last.coefficients:  # of a method that weighs encoders: its losses all count 1
            self._weights.append(dict(last.coefficients))
        elif last.weights is not None:
            self._weights.append(dict(zip(last.names, mean_weights(last).unbind(), strict=True)))
        if last.gramian is not None and JOINT in last.names:
            whole = last.gramian.reshape(-1, *last.gramian.shape[-2:]).sum(0)
            joint = last.names.index(JOINT)
            others = [i for i in range(len(last.names)) if i != joint]
            self._conflicts.append(whole[joint, others] < 0)

    def end_epoch(self) -> None:
        """Close the books of an epoch."""
        for name, factor in (self._last.factors if self._last else {}).items():
            self.factors.setdefault(name, []).append(factor.item())
        for name in dict.fromkeys(name for step in self._weights for name in step):
            found = torch.stack([step.get(name, torch.zeros(())).float() for step in self._weights])
            self.weights.setdefault(name, []).append(found.mean().item())
        self._weights, self._first = [], True


def mean_weights(step: bg.Step) -> Tensor:
    """Weight of each loss, the mean over the problems that it reaches."""
    return step.mean_weights().float()


def flat(module: torch.nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])
