from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.capture._graph import reached
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
    """Which loss reaches which parameter: disjoint groups, by the set of losses that reach them."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, losses: Losses, params: "ParameterFilter") -> "Plan":
        """Walk the graph of every loss; ``params`` restricts what counts as a parameter."""
        reach: dict[Tensor, list[int]] = {}
        for index, (name, loss) in enumerate(zip(losses.names, losses.tensors, strict=True)):
            leaves = [leaf for leaf in reached(name, loss)[0] if leaf in params]
            if not leaves:
                raise ValueError(
                    f"loss {name!r} reaches none of the parameters given as params=; "
                    "add its modality's parameters there, or leave this loss out"
                )
            for leaf in leaves:
                reach.setdefault(leaf, []).append(index)
        grouped: dict[tuple[tuple[int, ...], torch.dtype, torch.device], list[Tensor]] = {}
        for leaf, indices in reach.items():
            params.check(leaf, losses.names, indices)
            grouped.setdefault((tuple(indices), leaf.dtype, leaf.device), []).append(leaf)
        in_order = sorted(grouped.items(), key=lambda item: item[0][0])  # that of the user's losses
        return cls(tuple(Group(key[0], tuple(leaves)) for key, leaves in in_order))

    def reached_by(self, loss: int) -> list[Group]:
        """The groups that this loss reaches."""
        return [group for group in self.groups if loss in group.losses]


class ParameterFilter:
    """The leaves that may receive a gradient: those given by the user, or all that the losses reach."""

    def __init__(self, params: Iterable[Tensor] | Iterable[tuple[str, Tensor]] | None = None) -> None:
        self._names: dict[Tensor, str] | None = None
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
        if not self._names:
            raise ValueError("params is empty; give model.parameters(), or leave it out to use all reached parameters")

    @property
    def given(self) -> list[Tensor] | None:
        """The user's restriction, as autograd's ``inputs`` takes it: trainable parameters, or None for all."""
        return None if self._names is None else [p for p in self._names if p.requires_grad]

    def __contains__(self, leaf: Tensor) -> bool:
        return self._names is None or leaf in self._names

    def label(self, leaf: Tensor) -> str:
        """The user's name of a parameter, or one made of its address: distinct within a step."""
        return (self._names or {}).get(leaf, f"{tuple(leaf.shape)}@{id(leaf):x}")

    def check(self, leaf: Tensor, names: tuple[str, ...], losses: list[int]) -> None:
        """Refuse parameters whose hooks or sharding a captured gradient would silently pass by."""

        def where() -> str:
            what = (self._names or {}).get(leaf, f"a parameter of shape {tuple(leaf.shape)}")
            return f"{what} (reached by {', '.join(repr(names[loss]) for loss in losses)})"

        if getattr(leaf, "_post_accumulate_grad_hooks", None):
            raise RuntimeError(
                f"{where()} has a post-accumulate-grad hook, which capturing per-loss gradients would bypass; remove "
                "the hook (optimizer-in-backward, offloading), use level='features', or a losses-only balancer"
            )
        if type(leaf).__name__ == "DTensor":
            raise RuntimeError(
                f"{where()} is a sharded DTensor; per-loss gradients of sharded parameters are not supported here: "
                "use a losses-only balancer such as Uniform or MIMO"
            )

    def __repr__(self) -> str:
        return "all reached" if self._names is None else f"{len(self._names)} given"
