"""All losses in one backward, where activation checkpointing makes that the better way.

A backward per loss computes anew, every time, what checkpointing has dropped; a batched one does so once. Elsewhere it
pays in small layers alone, and is asked for, since a hook cannot read what it gets of a batch: in large ones two losses
take 1.1 to 1.2 times as long as one after the other, and what only some of the losses reach is computed for all.
"""

import re
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd.graph import GradientEdge

from balanced_grad.capture._walk import Walk

if TYPE_CHECKING:
    from torch.autograd.graph import Node

_ASKED = 128  # nodes that are asked whether checkpointing has dropped what they saved
_LEAST = 32  # nodes that all losses share: below, a second pass is cheap
_WASTE = 0.25  # nodes visited in vain, for a loss that does not reach them, per visit that computes nothing anew
_MOST = 1 << 28  # numbers in the gradients of all losses, which a batched pass holds beside the rows

_NATIVE = re.compile(r"Backward\d+$")  # nodes of torch's own operators: a custom Function may do anything with a batch

Way = Callable[[Sequence[Tensor], Sequence[GradientEdge], Sequence[Tensor]], Sequence[Tensor | None]]


@dataclass(frozen=True)
class Parameters:
    """Per-loss gradients at the parameters: ``level="parameters"``, and how many backwards they take.

    Args:
        batched: None (default): one backward per loss, but one of all losses side by side where activation
            checkpointing has dropped most of what they share, and all operators are torch's own. True: all
            side by side wherever that works, which is faster in small layers and slower in large ones
            (``bench.trunk``), and takes the memory of all at once; where an operator or a hook takes no batch, one
            by one, with a warning. False: always one by one, as hooks and ``retain_grad()`` on activations need it:
            what they get of a batch cannot be read. Under ``fully_shard``, and where a parameter has a hook, it is
            one by one in any case.

    Raises:
        TypeError: for another ``batched``.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> encoder, image, text = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
        >>> balancer = bg.MinNorm(level=bg.Parameters(batched=True))
        >>> z = encoder(torch.ones(3, 2))
        >>> balancer({"image": image(z).square().mean(), "text": text(z).square().mean()}).backward()
        >>> encoder.weight.grad.shape
        torch.Size([2, 2])
    """

    batched: bool | None = None

    def __post_init__(self) -> None:
        if self.batched is not None and not isinstance(self.batched, bool):
            raise TypeError(f"batched={self.batched!r}: give True, False, or None to go by activation checkpointing")


class Batching:
    """What a balancer knows of a batched backward: whether it is wanted, and the ways that have not failed."""

    def __init__(self, parameters: Parameters) -> None:
        self.always = bool(parameters.batched)
        # The first runs as it is what checkpointing computes anew, but no random number; the second is slower there.
        self.ways: list[Way] = [] if parameters.batched is False else [_of_autograd, _of_vmap]

    def wanted(self, walk: Walk, leaves: Sequence[Tensor]) -> bool:
        """Whether to try, for these losses."""
        if not self.ways or len(walk.names) < 2 or any(found.noted for found in walk.each):
            return False
        if not (self.always or (_pays(walk) and len(walk.names) * sum(leaf.numel() for leaf in leaves) <= _MOST)):
            return False
        return not any(leaf._backward_hooks for leaf in leaves)  # each is to see what each loss sends

    def strike(self, error: Exception) -> None:
        """The first way has failed."""
        self.ways.pop(0)
        if self.always and not self.ways:
            warnings.warn(
                "Parameters(batched=True): an operator or a hook takes no batch, so from now on there is one backward "
                f"per loss; leave batched out. It was: {error}",
                stacklevel=2,
            )


def batched_gradients(
    walk: Walk, leaves: Sequence[Tensor], scale: Tensor, batching: Batching
) -> dict[Tensor, Tensor] | None:
    """Per leaf ``scale * d loss / d leaf`` for all losses ``(K, ...)``; None where one pass per loss is better.

    The graphs are kept in either case. A way that fails, from a hook or an operator that takes no batch, is not tried
    again.
    """
    if not batching.wanted(walk, leaves):
        return None
    count = len(walk.names)
    places = [(leaf, GradientEdge(node, 0)) for leaf in leaves for node in walk.accumulators.get(leaf, ())]
    one_hot = torch.eye(count, dtype=scale.dtype, device=scale.device) * scale
    begin = [column.to(loss.dtype) for column, loss in zip(one_hot.unbind(1), walk.tensors, strict=True)]
    while batching.ways:
        try:
            with warnings.catch_warnings():
                # An operator without a rule for batches, as attention on the CPU, runs once per loss: as it would
                # without this.
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                grads = batching.ways[0](walk.tensors, [edge for _, edge in places], begin)
        except Exception as error:  # of any kind: what is wrong in itself is raised again, loss by loss
            batching.strike(error)
            continue
        return _by_leaf([leaf for leaf, _ in places], grads)
    return None


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


def _by_leaf(leaves: Sequence[Tensor], grads: Sequence[Tensor | None]) -> dict[Tensor, Tensor]:
    """The sum, where a leaf was met as several."""
    out: dict[Tensor, Tensor] = {}
    for leaf, grad in zip(leaves, grads, strict=True):
        if grad is not None:
            out[leaf] = out[leaf] + grad if leaf in out else grad
    return out


def _pays(walk: Walk) -> bool:
    each = [found.nodes for found in walk.each]
    if not _mostly_dropped(min(each, key=len)):  # first, as it is the cheapest to find
        return False
    common, everything = set(each[0]).intersection(*each[1:]), set().union(*each)
    in_vain = len(each) * len(everything) - sum(map(len, each))
    if len(common) < _LEAST or in_vain > _WASTE * (len(each) - 1) * len(common):
        return False
    return all(_NATIVE.search(kind.__name__) for kind in set(map(type, everything)))


def _mostly_dropped(nodes: Collection["Node"]) -> bool:
    """Whether activation checkpointing has dropped most of what these nodes saved: some of them are asked."""
    asked = islice(nodes, 0, None, -(-len(nodes) // _ASKED) or 1)
    saved = [getattr(node, name) for node in asked if (name := _saved(type(node)))]
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
