"""All losses in one backward, where activation checkpointing makes that the better way.

A backward per loss computes anew, every time, what checkpointing has dropped; a batched one does so once. Elsewhere it
does not pay: batched, two losses take 1.1 to 1.2 times as long as one after the other (measured on attention layers),
convolutions far longer, and what only some of the losses reach is computed for all.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.graph import GradientEdge

from balanced_grad.capture._walk import Walk

if TYPE_CHECKING:
    from torch.autograd.graph import Node

_LEAST = 32  # nodes that all losses share: below, a second pass is cheap
_WASTE = 0.25  # nodes visited in vain, for a loss that does not reach them, per visit that computes nothing anew
_MOST = 1 << 28  # numbers in the gradients of all losses, which a batched pass holds beside the rows

_OPERATORS = (  # what autograd batches at about the price of one pass per loss
    *("Add", "Sub", "Rsub", "Mul", "Div", "Neg", "Abs", "Pow", "Exp", "Log", "Sqrt", "Rsqrt", "Sum", "Mean", "Where"),
    *("Mm", "Addmm", "Bmm", "Baddbmm", "T", "MaskedFill", "LogSoftmax", "Softmax", "NllLoss", "NllLoss2D", "Cumsum"),
    *("Silu", "Gelu", "Relu", "Tanh", "Sigmoid", "NativeLayerNorm", "NativeDropout", "Embedding", "Index", "Gather"),
    *("View", "UnsafeView", "ReshapeAlias", "Transpose", "Permute", "Expand", "Slice", "Select", "Squeeze"),
    *("Unsqueeze", "Cat", "Stack", "Split", "SplitWithSizes", "Chunk", "Unbind", "Clone", "ToCopy", "Alias"),
    *("ScaledDotProductFlashAttention", "ScaledDotProductFlashAttentionForCpu"),
    *("ScaledDotProductEfficientAttention", "ScaledDotProductFusedAttentionOverrideable"),
)
_BATCHABLE = frozenset(f"{operator}Backward{overload}" for operator in _OPERATORS for overload in range(3))


Way = Callable[[Sequence[Tensor], Sequence[GradientEdge], Sequence[Tensor]], Sequence[Tensor | None]]


def batched_gradients(
    walk: Walk, leaves: Sequence[Tensor], scale: Tensor, ways: list[Way]
) -> list[dict[Tensor, Tensor]] | None:
    """Per loss, ``scale * d loss / d leaf`` of the leaves that it reaches; None where one pass per loss is better.

    The graphs are kept in either case. A way that fails, from a hook or an operator that takes no batch, is struck off
    ``ways``; what else is wrong fails again, loss by loss.
    """
    count = len(walk.names)
    if not ways or count * sum(leaf.numel() for leaf in leaves) > _MOST or not _pays(walk):
        return None
    places = [(leaf, GradientEdge(node, 0)) for leaf in leaves for node in walk.accumulators.get(leaf, ())]
    one_hot = torch.eye(count, dtype=scale.dtype, device=scale.device) * scale
    begin = [column.to(loss.dtype) for column, loss in zip(one_hot.unbind(1), walk.tensors, strict=True)]
    while ways:
        try:
            with warnings.catch_warnings():
                # An operator without a rule for batches, as attention on the CPU, runs once per loss: as it would
                # without this.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                grads = ways[0](walk.tensors, [edge for _, edge in places], begin)
        except RuntimeError:
            ways.pop(0)
            continue
        return _by_loss(walk, [leaf for leaf, _ in places], grads)
    return None


def both_ways() -> list[Way]:
    """The first runs as it is what checkpointing computes anew, but no random number; the second is slower there."""
    return [_of_autograd, _of_vmap]


def _of_autograd(
    losses: Sequence[Tensor], edges: Sequence[GradientEdge], begin: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    return torch.autograd.grad(losses, edges, begin, retain_graph=True, allow_unused=True, is_grads_batched=True)


def _of_vmap(
    losses: Sequence[Tensor], edges: Sequence[GradientEdge], begin: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    there: list[bool] = []

    def pull(*seeds: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(losses, edges, seeds, retain_graph=True, allow_unused=True)
        there[:] = [grad is not None for grad in grads]
        return tuple(grad for grad in grads if grad is not None)

    # Dropout in a part that is computed anew is that of the forward pass: the same for all.
    grads = iter(torch.func.vmap(pull, randomness="same")(*begin))
    return [next(grads) if met else None for met in there]


def _by_loss(walk: Walk, leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[dict[Tensor, Tensor]]:
    """What each loss sends to each leaf; the sum, where a leaf was met as several."""
    out: list[dict[Tensor, Tensor]] = [{} for _ in walk.names]
    for leaf, stacked in zip(leaves, grads, strict=True):
        if stacked is None:
            continue
        for sent, reached, grad in zip(out, walk.each, stacked.unbind(), strict=True):
            if leaf in reached.leaves:
                sent[leaf] = sent[leaf] + grad if leaf in sent else grad
    return out


def _pays(walk: Walk) -> bool:
    each = [found.nodes for found in walk.each]
    common, everything = set.intersection(*each), set().union(*each)
    in_vain = len(each) * len(everything) - sum(map(len, each))
    if len(common) < _LEAST or in_vain > _WASTE * (len(each) - 1) * len(common):
        return False
    batchable = {type(node).__name__ for node in everything} <= _BATCHABLE
    return batchable and not any(found.noted for found in walk.each) and _mostly_dropped(common)


def _mostly_dropped(nodes: Iterable["Node"]) -> bool:
    """Whether activation checkpointing has dropped most of what these nodes saved."""
    saved = [getattr(node, name) for node in nodes if (name := _saved(type(node)))]
    return 2 * sum(map(_dropped, saved)) > len(saved)


@cache
def _saved(kind: type["Node"]) -> str | None:
    """One of the tensors that such a node saves: all of them share one fate."""
    return next((name for name in dir(kind) if name.startswith("_raw_saved_")), None)


def _dropped(saved: Any) -> bool:
    """Releases of torch that do not show the hook are taken to have kept the tensor."""
    if isinstance(saved, Collection):
        return any(map(_dropped, saved))
    return getattr(getattr(saved, "unpack_hook", None), "__module__", None) == torch.utils.checkpoint.__name__
