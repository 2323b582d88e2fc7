from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.nn.parallel.distributed import _DDPSink

if TYPE_CHECKING:
    from torch.autograd.graph import Node

# DistributedDataParallel with find_unused_parameters or static_graph ties all outputs of a model together in one node,
# each of whose outputs is one of its inputs.
SINK: type = _DDPSink._backward_cls


def reached(name: str, loss: Tensor, kinds: Collection[type] = ()) -> tuple[list[Tensor], list["Node"]]:
    """Leaf tensors that ``loss`` would send a gradient to, and its nodes of the given kinds, each once.

    A walk over the graph: about half a microsecond per node, on the host only. Walked anew each step, because
    nothing cheaper notices that control flow sent this batch through other parameters.
    """
    seen: set[Node] = set()
    stack: list[Node] = []
    leaves: list[Tensor] = []
    found: list[Node] = []
    start = get_gradient_edge(loss)
    following: tuple[tuple[Node | None, int], ...] = ((start.node, start.output_nr),)
    while True:
        for child, output in following:
            target: Node | None = child
            while type(target) is SINK:
                assert target is not None
                if SINK in kinds and target not in seen:
                    seen.add(target)
                    found.append(target)
                target, output = target.next_functions[output]
            if target is not None and target not in seen:
                seen.add(target)
                stack.append(target)
        if not stack:
            return leaves, found
        node = stack.pop()
        following = node.next_functions
        if not following:
            leaf = getattr(node, "variable", None)  # only AccumulateGrad nodes hold one
            if leaf is not None:
                leaves.append(leaf)
            continue
        kind = type(node)
        if kind in kinds:
            found.append(node)
        if kind.__name__ == "CheckpointFunctionBackward":
            raise RuntimeError(
                f"loss {name!r} passes through activation checkpointing with use_reentrant=True, whose "
                "parameters cannot be reached one loss at a time; write checkpoint(..., use_reentrant=False)"
            )


def refuse_static_graph(loss: str, sinks: Iterable["Node"]) -> None:
    """Refuse what is tied together by a DistributedDataParallel that reduces at the end of the first backward."""
    for sink in sinks:
        wrapper = sink.ddp_weakref()  # type: ignore[attr-defined]
        if wrapper is not None and wrapper.static_graph:
            raise RuntimeError(
                f"loss {loss!r} passes through DistributedDataParallel(static_graph=True), which takes the first "
                "backward for the whole step, but one backward per loss is needed; leave static_graph out, or use a "
                "losses-only balancer such as Uniform or MIMO"
            )
