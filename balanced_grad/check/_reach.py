from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from balanced_grad.capture import Losses, ParameterFilter, Plan
from balanced_grad.capture._graph import reached


@dataclass(frozen=True, eq=False)
class Reach:
    """What the losses reach: the plan of the parameters, and per leaf that is none of them its losses."""

    plan: Plan
    bystanders: Mapping[Tensor, tuple[int, ...]]

    @classmethod
    def of(cls, losses: Losses) -> "Reach":
        """Walk the graph of every loss; refuses what a balancer refuses."""
        plan = Plan.of(losses, ParameterFilter())
        losses_of: dict[Tensor, list[int]] = {}
        for index, (name, loss) in enumerate(zip(losses.names, losses.tensors, strict=True)):
            for leaf in reached(name, loss)[0]:
                losses_of.setdefault(leaf, []).append(index)
        if hasattr(plan, "bystanders"):
            aside = list(plan.bystanders)
        else:
            are_parameters = any(isinstance(leaf, nn.Parameter) for leaf in losses_of)
            aside = [leaf for leaf in losses_of if are_parameters and not isinstance(leaf, nn.Parameter)]
            plan = Plan.by_reach(losses.names, {leaf: losses_of[leaf] for leaf in losses_of if leaf not in set(aside)})
        return cls(plan, {leaf: tuple(losses_of[leaf]) for leaf in aside})

    @property
    def parameters(self) -> list[Tensor]:
        """All that any loss reaches."""
        return [parameter for group in self.plan.groups for parameter in group.parameters]
