import sys
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from balanced_grad.capture._graph import SINK, reached, refuse_static_graph
from balanced_grad.capture._losses import Losses


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
    """Which loss reaches which parameter: disjoint groups, by the set of losses (``names``) that reach them."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, losses: Losses, params: "ParameterFilter") -> "Plan":
        """Walk the graph of every loss; ``params`` restricts what counts as a parameter."""
        reach: dict[Tensor, list[int]] = {}
        for index, (name, loss) in enumerate(zip(losses.names, losses.tensors, strict=True)):
            found, sinks = reached(name, loss, (SINK,))
            refuse_static_graph(name, sinks)
            leaves = [leaf for leaf in found if leaf in params]
            if not leaves:
                raise ValueError(
                    f"loss {name!r} reaches none of the parameters given as params=; "
                    "add its modality's parameters there, or leave this loss out"
                )
            for leaf in leaves:
                reach.setdefault(leaf, []).append(index)
        for leaf, indices in reach.items():
            params.check(leaf, losses.names, indices)
        return cls.by_reach(losses.names, reach)

    @classmethod
    def by_reach(cls, names: tuple[str, ...], reach: Mapping[Tensor, Iterable[int]]) -> "Plan":
        """Group parameters by the set of losses that reach them."""
        grouped: dict[tuple[tuple[int, ...], torch.dtype, torch.device], list[Tensor]] = {}
        for leaf, indices in reach.items():
            grouped.setdefault((tuple(sorted(indices)), leaf.dtype, leaf.device), []).append(leaf)
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


class ParameterFilter:
    """The leaves that may receive a gradient: those given by the user, or all that the losses reach."""

    def __init__(self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | None = None) -> None:
        self._names: dict[Tensor, str] | None = None
        self._met: dict[int, tuple[weakref.ref[Tensor], tuple[tuple[int, ...], int]]] = {}  # by id: shape, number
        self.sharded = False  # whether these are the shards that ``fully_shard`` makes of a model
        if params is None:
            return
        if isinstance(params, Tensor):
            raise TypeError("params must be an iterable of parameters, got one tensor; write params=[tensor]")
        self._names = {}
        for position, entry in enumerate(params):
            name, tensor = entry if isinstance(entry, tuple) else (f"params[{position}]", entry)
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{name} is a {type(tensor).__name__}; give model.parameters() or model.named_parameters()"
                )
            if not tensor.is_leaf:
                raise ValueError(f"{name} is not a leaf tensor; give the parameters themselves, not functions of them")
            self._names[tensor] = name
            self.sharded = self.sharded or is_dtensor(tensor)
        if not self._names:
            raise ValueError("params is empty; give model.parameters(), or leave it out to use all reached parameters")

    @property
    def given(self) -> list[Tensor] | None:
        """The user's restriction: trainable parameters, or None for all."""
        return None if self._names is None else [p for p in self._names if p.requires_grad]

    @property
    def inputs(self) -> list[Tensor] | None:
        """The same as autograd's ``inputs`` takes it; all for shards, to which the graph does not lead."""
        return None if self.sharded else self.given

    def __contains__(self, leaf: Tensor) -> bool:
        return self._names is None or leaf in self._names

    def label(self, leaf: Tensor) -> str:
        """The user's name of a parameter, or its shape and a number by first meeting, alike in every run."""
        name = (self._names or {}).get(leaf)
        if name is not None:
            return name
        met = self._met.get(id(leaf))
        if met is None or met[0]() is not leaf:
            self._met = {key: entry for key, entry in self._met.items() if entry[0]() is not None}
            shape = tuple(leaf.shape)
            taken = {number for _, (other, number) in self._met.values() if other == shape}
            met = weakref.ref(leaf), (shape, next(n for n in count(1) if n not in taken))
            self._met[id(leaf)] = met
        shape, number = met[1]
        return f"{shape}#{number}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_met": {}}  # a copy has other tensors, and meets them itself

    def check(self, leaf: Tensor, names: tuple[str, ...], losses: list[int]) -> None:
        """Refuse parameters whose hooks or sharding a captured gradient would silently pass by."""
        self.refuse_hooks(leaf, names, losses)
        self.refuse_flat(leaf, names, losses)
        if is_dtensor(leaf) or _unsharded(leaf):
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} is sharded, and the graph leads to its unsharded copy only: give "
                "the balancer params=model.parameters() after fully_shard(model), with every parameter of the model "
                "sharded, or use a losses-only balancer such as Uniform or MIMO"
            )

    def refuse_flat(self, leaf: Tensor, names: tuple[str, ...], losses: Iterable[int]) -> None:
        """Refuse what FSDP1 makes of parameters."""
        if getattr(leaf, "_is_flat_param", False):
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} is sharded by FullyShardedDataParallel (FSDP1), which cannot "
                "run several backwards over one graph; shard the model with torch.distributed.fsdp.fully_shard, or use "
                "a losses-only balancer such as Uniform or MIMO"
            )

    def refuse_hooks(self, leaf: Tensor, names: tuple[str, ...], losses: Iterable[int]) -> None:
        """Refuse a parameter with a hook that is called when its gradient has been accumulated."""
        if getattr(leaf, "_post_accumulate_grad_hooks", None):
            raise RuntimeError(
                f"{self._where(leaf, names, losses)} has a post-accumulate-grad hook, which capturing per-loss "
                "gradients would bypass; remove the hook (optimizer-in-backward, offloading), use level='features', or "
                "a losses-only balancer"
            )

    def _where(self, leaf: Tensor, names: tuple[str, ...], losses: Iterable[int]) -> str:
        what = (self._names or {}).get(leaf, f"a parameter of shape {tuple(leaf.shape)}")
        return f"{what} (reached by {', '.join(repr(names[loss]) for loss in losses)})"

    def __repr__(self) -> str:
        return "all reached" if self._names is None else f"{len(self._names)} given"


def is_dtensor(tensor: Tensor) -> bool:
    """Whether this is a distributed tensor, without importing its module for those who have none."""
    return type(tensor).__name__ == "DTensor"


def _unsharded(leaf: Tensor) -> bool:
    """Whether this is what ``fully_shard`` puts in the place of a shard during the forward pass.

    It carries no mark, but its memory is freed, or its owner knows it.
    """
    states = getattr(sys.modules.get("torch.distributed._composable_state"), "_module_state_mapping", None)
    if not states:
        return False
    for state in (state() if callable(state) else state for state in states.values()):
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        for group in groups:
            for known in getattr(group, "fsdp_params", ()):
                if getattr(known, "_unsharded_param", None) is leaf:
                    return True
    return False
