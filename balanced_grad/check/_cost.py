import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture import Losses, Plan, gradients

_REPEATS = 3
_FORWARD = 0.5  # of a backward: a forward pass computes one product where a backward computes two


@dataclass(frozen=True)
class Cost:
    """Time of the backwards on one batch, on this machine.

    Attributes:
        plain: seconds of one backward of the plain sum.
        per_loss: seconds of one backward per loss, as a method runs them that takes per-loss gradients.
    """

    plain: float
    per_loss: float

    @property
    def ratio(self) -> float:
        """Step with one backward per loss over a plain step, if a forward pass takes half of a backward."""
        forward = _FORWARD * self.plain
        return (forward + self.per_loss) / (forward + self.plain)


def measure(losses: Losses, plan: Plan) -> Cost:
    """Best of three of either kind, in turns; ``.grad`` stays as it is."""
    everything = [parameter for group in plan.groups for parameter in group.parameters]
    reached = [[p for group in plan.reached_by(loss) for p in group.parameters] for loss in range(len(losses.names))]
    seed = torch.ones((), device=losses.tensors[0].device)

    def plain() -> None:
        gradients(_sum(losses), everything, seed, retain=True)

    def per_loss() -> None:
        for loss, wanted in zip(losses.tensors, reached, strict=True):
            gradients(loss, wanted, seed, retain=True)

    times = [(_time(plain, seed), _time(per_loss, seed)) for _ in range(_REPEATS)]
    return Cost(min(first for first, _ in times), min(second for _, second in times))


def _sum(losses: Losses) -> Tensor:
    return torch.stack([loss.float() for loss in losses.tensors]).sum()


def _time(function: Callable[[], None], like: Tensor) -> float:
    _finish(like)
    start = time.perf_counter()
    function()
    _finish(like)
    return time.perf_counter() - start


def _finish(like: Tensor) -> None:
    if like.is_cuda:
        torch.cuda.synchronize(like.device)
