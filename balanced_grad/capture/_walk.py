from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from balanced_grad.capture._gradients import gradients
from balanced_grad.capture._graph import (
    Reached,
    reached,
    refuse_static_graph,
    sink_type,
    static_graph_error,
    wrapper_in_forward,
)
from balanced_grad.capture._hidden import refuse_hidden
from balanced_grad.capture._hook import needed_later, scalar_type
from balanced_grad.capture._losses import JOINT, Losses

if TYPE_CHECKING:
    from torch.autograd.graph import Node


@dataclass(frozen=True)
class Walk:
    """The graphs of all losses of one batch, walked: what a capture knows of them.

    Attributes:
        names: the losses.
        tensors: their scalars.
        each: per loss, what was met from it.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    each: tuple[Reached, ...]

    @classmethod
    def of(
        cls, losses: Losses, kinds: Collection[type] = (), stop: Collection["Node"] = (), *, once: bool = False
    ) -> "Walk":
        """Walk from every loss, to its leaves or the nodes of ``stop``, and note nodes of the given kinds.

        Args:
            losses: where to start.
            kinds: types of nodes.
            stop: nodes that are not passed.
            once: whether there will be a single backward, of all losses together.

        Raises:
            RuntimeError: for a loss that is the scalar of another balancer, or for more than one backward, comes from
                a ``DistributedDataParallel`` with ``static_graph``.
        """
        if not once and getattr(wrapper_in_forward(), "static_graph", False):
            raise static_graph_error("the balancer is called in the forward of")
        special = {kind for kind in (sink_type(), scalar_type()) if kind is not None}
        walk = cls(losses.names, losses.tensors, tuple(reached(t, {*special, *kinds}, stop) for t in losses.tensors))
        for name, met in zip(walk.names, walk.each, strict=True):
            if not once:
                refuse_static_graph(name, met.noted)
            if any(type(node) is scalar_type() for node in met.noted):
                raise RuntimeError(
                    f"loss {name!r} is made of the scalar of another balancer, whose backward() writes gradients by "
                    "itself, so it cannot be weighed; give one balancer all losses, or add the two scalars"
                )
        return walk

    @property
    def order(self) -> list[int]:
        """The losses as their graphs are to be traversed: the joint one's is the largest, and last it is freed."""
        return sorted(range(len(self.names)), key=lambda loss: self.names[loss] == JOINT)

    @cached_property
    def accumulators(self) -> dict[Tensor, list["Node"]]:
        """Per leaf that any loss reaches, the nodes that accumulate its gradient."""
        out: dict[Tensor, dict[Node, None]] = {}
        for met in self.each:
            for leaf, nodes in met.leaves.items():
                out.setdefault(leaf, {}).update(dict.fromkeys(nodes))
        return {leaf: list(nodes) for leaf, nodes in out.items()}

    def edges(self, leaves: Iterable[Tensor]) -> list[list[GradientEdge]]:
        """Where to ask for the gradient of each leaf; its sum, where the leaf was met as several."""
        return [[GradientEdge(node, 0) for node in self.accumulators.get(leaf, ())] for leaf in leaves]

    @cached_property
    def reach(self) -> dict[Tensor, list[int]]:
        """Per leaf the losses that send it a gradient; those that were frozen since the forward pass get none."""
        out: dict[Tensor, list[int]] = {}
        for index, met in enumerate(self.each):
            for leaf in met.leaves:
                if leaf.requires_grad:
                    out.setdefault(leaf, []).append(index)
        return out

    def gradients(
        self, loss: int, leaves: Sequence[Tensor], scale: Tensor, *, retain: bool, beside: Sequence[GradientEdge] = ()
    ) -> list[Tensor | None]:
        """``scale * d loss / d leaf``, None where the loss does not reach, then those at the edges ``beside``."""
        nodes = self.each[loss].leaves
        # A leaf has one accumulator, but for one that was moved between two uses.
        many = [nodes.get(leaf, ()) if leaf.requires_grad else () for leaf in leaves]
        wanted = [GradientEdge(node, 0) for several in many for node in several]
        received = iter(gradients(self.tensors[loss], [*wanted, *beside], scale, retain=retain, name=self.names[loss]))
        out = [next(received) if len(several) == 1 else _sum([next(received) for _ in several]) for several in many]
        return [*out, *received]

    def needed_later(self) -> bool:
        """Whether the backward that is under way will come through these graphs after this; asked inside of it."""
        return needed_later(set().union(*(met.nodes for met in self.each)))

    def refuse_hidden(self) -> None:
        """Refuse custom Functions that train parameters by themselves."""
        for name, met in zip(self.names, self.each, strict=True):
            refuse_hidden(name, met.custom, self.accumulators)

    def hooked(self, leaf: Tensor) -> bool:
        """Whether the nodes that accumulate this leaf's gradient have hooks, which a captured gradient passes by."""
        return any(_hooked(node) for node in self.accumulators.get(leaf, ()))


def _sum(grads: Sequence[Tensor | None]) -> Tensor | None:
    there = [grad for grad in grads if grad is not None]
    return torch.stack(there).sum(0) if there else None


def _hooked(node: "Node") -> bool:
    """Torch does not say, but the dictionary in which a hook is put tells of the others."""
    for register in (node.register_hook, node.register_prehook):
        handle = register(lambda *_: None)
        others = len(handle.hooks_dict_ref() or ()) - 1
        handle.remove()
        if others > 0:
            return True
    return False
