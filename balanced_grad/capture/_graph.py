from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, get_gradient_edge

from balanced_grad.capture._hidden import trains_by_itself

if TYPE_CHECKING:
    from torch.autograd.graph import Node

_CUSTOM: Any = BackwardCFunction  # the nodes of custom Functions, which torch's stubs do not call nodes
_ANCHOR = "_balanced_grad_anchor"  # attribute of an anchor


@dataclass(frozen=True)
class Reached:
    """What a walk from a loss came by.

    Attributes:
        leaves: each leaf with the nodes that accumulate its gradient: those that the graph itself holds, since a leaf
            that was moved between forward and backward has another one by now.
        nodes: all others, in the order in which they were met.
        noted: of these, those of the kinds asked for.
        custom: of the rest, those of custom Functions that hold trainable parameters, or run a part of the model anew.
        uses: one entry per edge: the node that it leads to.
    """

    leaves: dict[Tensor, list["Node"]] = field(default_factory=dict)
    nodes: dict["Node", None] = field(default_factory=dict)
    noted: list["Node"] = field(default_factory=list)
    custom: list["Node"] = field(default_factory=list)
    uses: list["Node"] = field(default_factory=list)


def anchor(device: torch.device | None) -> Tensor:
    """A leaf ``()`` to lead backwards through places of a graph: it is nobody's, and walks do not see it."""
    leaf = torch.zeros((), requires_grad=True, device=device)
    setattr(leaf, _ANCHOR, True)
    return leaf


def reached(loss: Tensor | GradientEdge, kinds: Collection[type] = (), stop: Collection["Node"] = ()) -> Reached:
    """Walk from a loss, or a place in its graph, to the leaves, or to the nodes of ``stop``.

    About half a microsecond per node, on the host only. Walked anew each step, because nothing cheaper notices that
    control flow sent this batch through other parameters.
    """
    out = Reached()
    seen: set[Node] = set(stop)
    stack: list[Node] = []
    sink = sink_type()
    start = loss if isinstance(loss, GradientEdge) else get_gradient_edge(loss)
    following: tuple[tuple[Node | None, int], ...] = ((start.node, start.output_nr),)
    while True:
        for child, output in following:
            target: Node | None = child
            while type(target) is sink:
                assert target is not None
                if sink in kinds and target not in seen:
                    seen.add(target)
                    out.noted.append(target)
                target, output = target.next_functions[output]
            if target is not None:
                out.uses.append(target)
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        if not stack:
            return out
        node = stack.pop()
        following = node.next_functions
        leaf = None if following else getattr(node, "variable", None)  # only AccumulateGrad nodes hold one
        if leaf is not None:
            if not hasattr(leaf, _ANCHOR):
                out.leaves.setdefault(leaf, []).append(node)
            continue
        out.nodes[node] = None
        if type(node) in kinds:
            out.noted.append(node)
        elif isinstance(node, _CUSTOM) and trains_by_itself(node):
            out.custom.append(node)


def leads_to(node: "Node", wanted: Collection["Node"]) -> bool:
    """Whether a backward towards the wanted nodes runs this one."""
    seen, stack = {node}, [node]
    while stack:
        for child, _ in stack.pop().next_functions:
            if child in wanted:
                return True
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return False


def behind_sinks(tensor: Tensor) -> GradientEdge:
    """Where the gradient of a tensor is computed, also of one that ``DistributedDataParallel`` has handed out."""
    edge = get_gradient_edge(tensor)
    node, output = edge.node, edge.output_nr
    while type(node) is sink_type():
        following, output = node.next_functions[output]
        assert following is not None
        node = following
    return GradientEdge(node, output)


@cache
def sink_type() -> type | None:
    """The node in which ``DistributedDataParallel`` ties all outputs of a model together, each being one of its inputs.

    It does so with find_unused_parameters or static_graph. None where torch has no such node.
    """
    if not torch.distributed.is_available():
        return None
    from torch.nn.parallel import distributed

    return getattr(getattr(distributed, "_DDPSink", None), "_backward_cls", None)


def wrapper_in_forward() -> Any:
    """The ``DistributedDataParallel`` whose forward is running right now, or None."""
    if not torch.distributed.is_available():
        return None
    from torch.nn.parallel import DistributedDataParallel

    return getattr(DistributedDataParallel, "_active_ddp_module", None)


def looked_through() -> bool:
    """Whether a wrapper will search the graph of the scalar for parameters, when the forward that runs returns it.

    With find_unused_parameters it takes those that it does not find for done, so a backward of our own must not
    announce their gradients, and the scalar must lead to them.
    """
    return bool(getattr(wrapper_in_forward(), "find_unused_parameters", False))


def refuse_static_graph(loss: str, nodes: Iterable["Node"]) -> None:
    """Refuse what is tied together by a DistributedDataParallel that reduces at the end of the first backward."""
    for node in nodes:
        if type(node) is sink_type():
            wrapper = node.ddp_weakref()  # type: ignore[attr-defined]
            if wrapper is not None and wrapper.static_graph:
                raise static_graph_error(f"loss {loss!r} passes through")


def static_graph_error(what: str) -> RuntimeError:
    """The same whether the wrapper is seen in the graph, or runs its forward right now."""
    return RuntimeError(
        f"{what} DistributedDataParallel(static_graph=True), which takes the first backward for the whole step, but "
        "one backward per loss is needed; leave static_graph out, or use a losses-only balancer such as Uniform or MIMO"
    )
