"""What went through a linear layer, noted on the graph itself: it lives and dies with the graph."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

if TYPE_CHECKING:
    from torch.autograd.graph import Node

_KEY = "balanced_grad"
_RESHAPES = ("ViewBackward0", "UnsafeViewBackward0")
KINDS: set[type] = set()  # types of nodes that were ever noted, so that a walk looks at few


@dataclass(frozen=True)
class Tap:
    """One call of a layer: its input ``(..., F)`` and output ``(..., C)``, detached."""

    layer: nn.Module
    inputs: Tensor
    outputs: Tensor
    version: int

    @property
    def intact(self) -> bool:
        """Whether the output still is what the layer returned: no in-place activation followed."""
        return self.outputs._version == self.version


def watch(layer: nn.Module) -> None:
    """Note every call of this layer from now on, at the node of the graph that computed its output.

    A note on the graph instead of a list of calls: nothing outlives the graph, whatever the user does between two
    steps, and a walk from a loss finds the calls that led to it.
    """
    if _note not in layer._forward_hooks.values():
        # First of all hooks: a hook of the user's may replace the output.
        layer.register_forward_hook(_note, prepend=True, with_kwargs=True)


def taps(nodes: Iterable["Node"]) -> list[tuple[GradientEdge, Tap]]:
    """Where to ask for the gradient of a call's output, and what the call was."""
    noted = ((node, _notes(node).get(_KEY)) for node in nodes)
    return [(GradientEdge(node, 0), tap) for node, tap in noted if tap is not None]


def _notes(node: "Node") -> dict[Any, Any]:
    return node.metadata  # type: ignore[return-value]  # a dict; torch's stub calls it a method


def _note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    if torch.compiler.is_compiling() or output.grad_fn is None:
        return
    node: Node = output.grad_fn
    while type(node).__name__ in _RESHAPES:  # which an in-place activation would take out of the graph
        node = node.next_functions[0][0]  # type: ignore[assignment]
    inputs = args[0] if args else kwargs["input"]
    _notes(node)[_KEY] = Tap(layer, inputs.detach(), output.detach(), output._version)
    KINDS.add(type(node))
