from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from balanced_grad.capture._gradients import backward, seeds
from balanced_grad.capture._graph import looked_through
from balanced_grad.capture._walk import Walk
from balanced_grad.capture._write import accumulate


class Delivery:
    """Ordinary gradients of weighted losses, accumulated from inside a scalar's ``backward()``.

    As a rule one more backward of autograd's own, with all that happens in one. Where the scalar is returned from the
    forward of a ``DistributedDataParallel`` with find_unused_parameters, that would announce gradients which the
    wrapper has not found: then the gradients are asked for, written, and the parameters shown ``through`` the scalar,
    so that autograd visits them, and the wrapper reduces them, when they are there.

    Args:
        walk: the graphs of the losses.
        leaves: which leaves may get a gradient; None: all.
        shown: further leaves whose gradient is written by the caller, for the wrapper to find.
        left_out: what to say of leaves that are missing among these.
    """

    def __init__(
        self,
        walk: Walk,
        leaves: Iterable[Tensor] | None,
        shown: Iterable[Tensor] = (),
        left_out: str | None = None,
    ) -> None:
        self.left_out = left_out
        self._walk = walk
        self._leaves = None if leaves is None else list(leaves)
        self._asked = looked_through()
        everything = [*(walk.reach if self._leaves is None else self._leaves), *shown]
        self.through = tuple(p for p in everything if isinstance(p, nn.Parameter)) if self._asked else ()
        if any(p._backward_hooks for p in self.through):
            raise RuntimeError(
                "a parameter has a tensor hook, and the balancer is called in the forward of "
                "DistributedDataParallel(find_unused_parameters=True), where such a hook cannot be called right: leave "
                "find_unused_parameters out (Hugging Face: ddp_find_unused_parameters=False), or let forward() return "
                "the losses and call the balancer on them"
            )

    def __call__(
        self,
        weights: Tensor,
        scale: Tensor,
        *,
        losses: Sequence[Tensor] | None = None,
        leaves: Sequence[Tensor] | None = None,
        retain: bool | None = None,
    ) -> None:
        """Accumulate ``scale * sum(weights * losses)``; of some losses, or into some leaves, if these are given.

        Args:
            weights: ``(K,)``.
            scale: ``()`` incoming gradient.
            losses: default: all.
            leaves: default: those of this object.
            retain: whether the graph is needed afterwards; default: if the backward around this one comes through it.
        """
        losses = self._walk.tensors if losses is None else losses
        leaves = self._leaves if leaves is None else leaves
        retain = self._walk.needed_later() if retain is None else retain
        if self._asked:
            self._write(losses, weights, scale, list(self._walk.reach if leaves is None else leaves), retain)
        elif leaves is None:
            backward(losses, weights, scale, None, retain=retain)
        elif leaves:
            edges = [edge for nodes in self._walk.edges(leaves) for edge in nodes]
            backward(losses, weights, scale, edges, retain=retain)

    def _write(
        self, losses: Sequence[Tensor], weights: Tensor, scale: Tensor, leaves: list[Tensor], retain: bool
    ) -> None:
        nodes = self._walk.edges(leaves)
        wanted = [edge for edges in nodes for edge in edges]
        if not wanted:
            return
        starts = seeds([loss.dtype for loss in losses], weights, scale)
        grads = iter(torch.autograd.grad(losses, wanted, starts, retain, allow_unused=True))
        for leaf, edges in zip(leaves, nodes, strict=True):
            for grad in [next(grads) for _ in edges]:
                if grad is not None and leaf.requires_grad:
                    accumulate([leaf], [grad.clone()])
