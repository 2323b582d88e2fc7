"""The operators of a graph: which there are, and what to call them."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

_SCRIPTS = ("__main__", "<run_path>")  # names that say nothing of where a class is from


def graph(losses: Iterable[Tensor]) -> list[Node]:
    """All nodes that the losses' gradients pass through, accumulators included, each once."""
    stack = [get_gradient_edge(loss).node for loss in losses]
    out = list(dict.fromkeys(stack))
    seen = set(stack)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                out.append(child)
                stack.append(child)
    return out


def variable(node: Node) -> Tensor | None:
    """The leaf tensor whose gradient arrives at this node; None for an operator."""
    return getattr(node, "variable", None)


def is_custom(node: Node) -> bool:
    """Whether this is a ``torch.autograd.Function`` written in Python."""
    return isinstance(node, BackwardCFunction)


def operator(node: Node) -> str:
    """The class of a custom Function, or autograd's name."""
    written = getattr(type(node), "_forward_cls", None)
    if written is None:
        return node.name()
    name = written.__qualname__.rpartition("<locals>.")[-1]
    return name if written.__module__ in _SCRIPTS else f"{name} ({written.__module__})"


def held(node: Node) -> Iterator[Tensor]:
    """Leaves that a custom Function keeps beside what autograd knows of, itself or in modules, lists and mappings."""
    stack = list(vars(node).values()) if is_custom(node) else []
    while stack:
        thing = stack.pop()
        if isinstance(thing, nn.Module):
            yield from thing.parameters()
        elif isinstance(thing, Tensor) and thing.is_leaf:
            yield thing
        elif isinstance(thing, Mapping):
            stack += thing.values()
        elif isinstance(thing, list | tuple | set):
            stack += thing
