"""All losses in one backward, where activation checkpointing makes that the better way.

A backward per loss computes anew, every time, what checkpointing has dropped; a batched one does so once. Elsewhere it
does not pay: batched, two losses take 1.1 to 1.2 times as long as one after the other (measured on attention layers),
convolutions far longer, and what only some of the losses reach is computed for all.
"""

import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.graph import GradientEdge

from balanced_grad.capture._gradients import seeds
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


def batched_gradients(walk: Walk, leaves: Sequence[Tensor], scale: Tensor) -> list[dict[Tensor, Tensor]] | None:
    """Per loss, ``scale * d loss / d leaf`` of the leaves that it reaches; None where one pass per loss is better.

    The graphs are kept in either case.

    Raises:
        RuntimeError: from a hook or an operator that takes no batch.
    """
    count = len(walk.names)
    if count * sum(leaf.numel() for leaf in leaves) > _MOST or not _pays(walk):
        return None
    places = [(leaf, GradientEdge(node, 0)) for leaf in leaves for node in walk.accumulators.get(leaf, ())]
    edges = [edge for _, edge in places]
    dtypes = [loss.dtype for loss in walk.tensors]
    there: list[Tensor] = []

    def pull(weights: Tensor) -> tuple[Tensor, ...]:
        begin = seeds(dtypes, weights, scale)
        grads = torch.autograd.grad(walk.tensors, edges, begin, retain_graph=True, allow_unused=True)
        there[:] = [leaf for (leaf, _), grad in zip(places, grads, strict=True) if grad is not None]
        return tuple(grad for grad in grads if grad is not None)

    with warnings.catch_warnings():
        # An operator without a rule for batches, as attention on the CPU, runs once per loss: as it would without this.
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        # Dropout in a part that is computed anew is that of the forward pass: the same for all.
        grads = torch.func.vmap(pull, randomness="same")(torch.eye(count, dtype=scale.dtype, device=scale.device))
    out: list[dict[Tensor, Tensor]] = [{} for _ in walk.names]
    for leaf, stacked in zip(there, grads, strict=True):
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
