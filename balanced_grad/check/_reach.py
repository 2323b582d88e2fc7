from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from balanced_grad.capture import Losses, ParameterFilter, Plan


@dataclass(frozen=True, eq=False)
class Reach:
    """What the losses reach: the plan of the parameters, and per leaf that is none of them its losses."""

    plan: Plan
    bystanders: Mapping[Tensor, tuple[int, ...]]

    @classmethod
    def of(cls, losses: Losses) -> "Reach":
        """Walk the graph of every loss; refuses what a balancer refuses."""
        plan = Plan.of(losses, ParameterFilter())
        return cls(plan, {leaf: tuple(losses) for leaf, losses in plan.bystanders.items()})

    @property
    def parameters(self) -> list[Tensor]:
        """All that any loss reaches."""
        return [parameter for group in self.plan.groups for parameter in group.parameters]
