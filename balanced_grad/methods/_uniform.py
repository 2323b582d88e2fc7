import math
from collections.abc import Mapping

import torch

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Params
from balanced_grad.records import Problem, Weighting
from balanced_grad.source import Level


class Uniform(Balancer):
    """Joint loss plus the sum of the uni-modal losses, or any fixed weights: the baseline every method must beat.

        Σ_k w_k L_k,   w_k = 1 by default

    Most of what published balancing methods gain over plain joint training comes from the uni-modal losses
    themselves, which is exactly this. Losses only: one ordinary backward.

    Args:
        weights: name -> weight, finite and non-negative; every loss that occurs must be named, except
            ``"joint"``, which defaults to 1.
        params, level, include_exclusive, record_gramian: see ``Balancer``.

    Raises:
        ValueError: for a negative or non-finite weight, or a loss without one.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.tensor([2.0], requires_grad=True)
        >>> balancer = bg.Uniform(weights={"audio": 0.5})
        >>> loss = balancer({"joint": (3 * w).sum(), "audio": (10 * w).sum()})
        >>> loss.item()
        16.0
        >>> loss.backward()
        >>> w.grad
        tensor([8.])
    """

    needs = "nothing"

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        *,
        params: Params | None = None,
        level: Level = "parameters",
        include_exclusive: bool = False,
        record_gramian: bool = False,
    ) -> None:
        super().__init__(params=params, level=level, include_exclusive=include_exclusive, record_gramian=record_gramian)
        for name, weight in (weights or {}).items():
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"weights[{name!r}]={weight!r}: a weight is finite and not negative")
        self.fixed = None if weights is None else dict(weights)

    def weigh(self, problem: Problem) -> Weighting:
        """The fixed weights, in the order of the losses."""
        if self.fixed is None:
            return Weighting(torch.ones_like(problem.losses), problem.losses.sum())
        unknown = [name for name in problem.names if name not in self.fixed and name != JOINT]
        if unknown:
            raise ValueError(
                f"loss {unknown[0]!r} has no entry in weights={self.fixed!r}; "
                f"the losses of this batch are {list(problem.names)}"
            )
        # A fill per weight rather than torch.tensor(weights): a copy from the host would make a GPU wait.
        weights = [problem.losses.new_full((), self.fixed.get(name, 1.0)) for name in problem.names]
        return Weighting(torch.stack(weights))

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"weights": self.fixed} | super().settings()
