from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from balanced_grad.capture._losses import Losses
from balanced_grad.capture._params import ParameterFilter
from balanced_grad.capture._shards import unsharded_ids
from balanced_grad.capture._walk import Walk


@dataclass(frozen=True, eq=False)
class Group:
    """Parameters of one dtype and device that exactly the losses with these indices reach."""

    losses: tuple[int, ...]
    parameters: tuple[Tensor, ...]

    @property
    def shared(self) -> bool:
        """Whether two or more losses meet here, so that the group needs rows."""
        return len(self.losses) > 1


@dataclass(frozen=True)
class Plan:
    """Which loss reaches which parameter: disjoint groups, by the set of losses (``names``) that reach them.

    Attributes:
        bystanders: leaves that want a gradient and are no parameters, such as an input or, under activation
            checkpointing of a frozen embedding, its output; and the losses that reach them. They get the weighted sum
            of the gradients, and nothing is balanced or compared there.
    """

    names: tuple[str, ...]
    groups: tuple[Group, ...]
    bystanders: Mapping[Tensor, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, losses: Losses, params: ParameterFilter) -> "Plan":
        """Walk the graph of every loss; ``params`` restricts what counts as a parameter."""
        return cls.along(Walk.of(losses), params)

    @classmethod
    def along(cls, walk: Walk, params: ParameterFilter) -> "Plan":
        """What was met on a walk, where a Gramian method may take gradients; refuses where it may not."""
        reach, bystanders = params.divide(walk.reach)
        params.refuse_unreached(walk.names, reach)
        walk.refuse_hidden()
        params.check(walk, reach, unsharded_ids())
        return replace(cls.by_reach(walk.names, reach), bystanders=bystanders)

    @classmethod
    def by_reach(cls, names: tuple[str, ...], reach: Mapping[Tensor, Iterable[int]]) -> "Plan":
        """Group parameters by the set of losses that reach them."""
        grouped: dict[tuple[tuple[int, ...], torch.dtype, torch.device], list[Tensor]] = {}
        for leaf, indices in reach.items():
            grouped.setdefault((tuple(sorted(indices)), grad_dtype(leaf), leaf.device), []).append(leaf)
        in_order = sorted(grouped.items(), key=lambda item: item[0][0])  # that of the user's losses
        return cls(names, tuple(Group(key[0], tuple(leaves)) for key, leaves in in_order))

    @classmethod
    def union(cls, plans: Sequence["Plan"]) -> "Plan":
        """What is reached in any of them, by the losses of all of them."""
        names = tuple(dict.fromkeys(name for plan in plans for name in plan.names))
        index = {name: position for position, name in enumerate(names)}
        reach: dict[Tensor, set[int]] = {}
        for plan in plans:
            for group in plan.groups:
                losses = [index[plan.names[loss]] for loss in group.losses]
                for parameter in group.parameters:
                    reach.setdefault(parameter, set()).update(losses)
        return cls.by_reach(names, reach)

    def reached_by(self, loss: int) -> list[Group]:
        """The groups that this loss reaches."""
        return [group for group in self.groups if loss in group.losses]


def grad_dtype(leaf: Tensor) -> torch.dtype:
    """The dtype of a leaf's ``.grad``, which newer releases of torch let a user choose."""
    chosen: torch.dtype | None = getattr(leaf, "grad_dtype", None)
    return leaf.dtype if chosen is None else chosen
