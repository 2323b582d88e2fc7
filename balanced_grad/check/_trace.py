"""What every operator of a graph does when the graph is traversed again and again, seen by hooks on its nodes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from balanced_grad.check._nodes import is_custom, variable
from balanced_grad.check._replay import Call

Print = tuple[float, float] | None  # norm and a projection: equal for equal tensors, and as good as never otherwise
Prints = tuple[Print, ...]

_SCALE = (
    4.0  # of the seeds, as a loss scaler has one: what multiplies by its seed in place shows only where it is not 1
)


@dataclass
class Visit:
    """One execution of a node, in a backward of that loss: prints of the gradients that came in and went out."""

    loss: str
    incoming: Prints
    outgoing: Prints = ()
    overwrote: bool = False  # what came in


@dataclass
class Trace:
    """What was seen of one graph.

    Attributes:
        visits: per node its executions, in the order in which nodes were first executed.
        handed: per custom node, what it handed out for each loss, with prints taken at the end of that traversal.
        hidden: per custom node, names of parameters whose ``.grad`` it wrote.
        spoiled: names of leaves whose gradients were written over after they had arrived.
        seeds: names of losses whose seed was written over.
        failures: the node that was executed when a traversal failed, and the error.
    """

    visits: dict[Node, list[Visit]] = field(default_factory=dict)
    handed: dict[Node, list[tuple[Tensor, Print]]] = field(default_factory=dict)
    hidden: dict[Node, set[str]] = field(default_factory=dict)
    spoiled: dict[str, None] = field(default_factory=dict)
    seeds: dict[str, None] = field(default_factory=dict)
    failures: list[tuple[Node | None, Exception]] = field(default_factory=list)


class Tracer:
    """Hooks on every node of a step's graph, for as long as the graph is traversed here."""

    def __init__(self, step: Call) -> None:
        self.trace = Trace()
        self._step = step
        self._names = {tensor: name for name, tensor in step.tensors.items()}
        self._loss = ""  # the one that is traversed now
        self._open: list[Node] = []  # nodes that are executed now
        self._before: dict[Node, dict[str, tuple[int, int]]] = {}
        self._given_out: list[tuple[Node, Tensor]] = []
        self._arrived: dict[Tensor, Print] = {}

    def run(self) -> Trace:
        """Traverse the graph twice per loss, each time down to the leaves."""
        handles: list[Any] = []
        leaves = {node: leaf for node in self._step.nodes if (leaf := variable(node)) is not None}
        for leaf in leaves.values():
            handles.append(leaf.register_hook(lambda grad, leaf=leaf: self._arrived.update({leaf: print_of(grad)})))  # type: ignore[no-untyped-call]
        for node in self._step.nodes:
            if node not in leaves:
                handles.append(node.register_prehook(lambda grads, node=node: self._pre(node, grads)))
                handles.append(node.register_hook(lambda out, grads, node=node: self._post(node, out, grads)))
        try:
            for name, loss in zip(self._step.losses.names, self._step.losses.tensors, strict=True):
                for _ in range(2):
                    self._traverse(name, loss, leaves)
        finally:
            for handle in handles:
                handle.remove()
        return self.trace

    def _traverse(self, name: str, loss: Tensor, leaves: Mapping[Node, Tensor]) -> None:
        self._loss, self._arrived, self._given_out, self._open = name, {}, [], []
        seed = torch.full_like(loss, _SCALE)
        edges = [GradientEdge(node, 0) for node in leaves]
        try:
            grads = torch.autograd.grad(loss, edges, seed, retain_graph=True, allow_unused=True)
        except Exception as error:
            self.trace.failures.append((self._open[-1] if self._open else None, error))
            return
        if seed.item() != _SCALE:
            self.trace.seeds[name] = None
        for leaf, grad in zip(leaves.values(), grads, strict=True):
            if grad is not None and not alike(self._arrived.get(leaf), print_of(grad), 0.0):
                self.trace.spoiled[self._names[leaf]] = None
        for node, out in self._given_out:
            self.trace.handed.setdefault(node, []).append((out, print_of(out)))
        for tensor in self._step.tensors.values():
            tensor.grad = None

    def _pre(self, node: Node, incoming: Sequence[Tensor | None]) -> None:
        self._open.append(node)
        self.trace.visits.setdefault(node, []).append(Visit(self._loss, tuple(map(print_of, incoming))))
        if is_custom(node):
            self._before[node] = self._grads()

    def _post(self, node: Node, outgoing: Sequence[Tensor | None], incoming: Sequence[Tensor | None]) -> None:
        if node in self._open:
            self._open.remove(node)
        visit = self.trace.visits[node][-1]
        visit.outgoing = tuple(map(print_of, outgoing))
        after = map(print_of, incoming)
        visit.overwrote = any(not alike(a, b, 0.0) for a, b in zip(visit.incoming, after, strict=False))
        if is_custom(node):
            self._given_out += [(node, out) for out in outgoing if out is not None]
            before = self._before.pop(node, {})
            changed = {name for name, state in self._grads().items() if before.get(name) != state}
            if changed:
                self.trace.hidden.setdefault(node, set()).update(changed)

    def _grads(self) -> dict[str, tuple[int, int]]:
        grads = ((name, tensor.grad) for name, tensor in self._step.tensors.items())
        return {name: (id(grad), grad._version) for name, grad in grads if grad is not None}


@torch.no_grad()
def print_of(tensor: Tensor | None) -> Print:
    """Two numbers of a tensor that tell it from others."""
    if tensor is None or tensor.is_nested:
        return None
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    flat = torch.view_as_real(dense.resolve_conj()).flatten() if dense.is_complex() else dense.flatten()
    flat = flat.double().nan_to_num()
    pattern = torch.arange(len(flat), dtype=torch.float64, device=flat.device).cos()
    norm, projection = torch.stack([flat.norm(), flat @ pattern]).tolist()
    return norm, projection


def alike(first: Print, second: Print, tolerance: float) -> bool:
    """Whether two prints are of the same tensor, up to a relative difference."""
    if first is None or second is None:
        return first is second
    allowed = tolerance * max(first[0], second[0])
    return all(abs(a - b) <= allowed for a, b in zip(first, second, strict=True))
