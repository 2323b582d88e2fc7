import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from balanced_grad.capture import Losses
from balanced_grad.check._function import Batch, name_of
from balanced_grad.check._nodes import graph, held, variable

_OF_HOOKS = "Using `torch.compile.* when there are global hooks"  # ours do nothing there


@dataclass(frozen=True, eq=False)
class Call:
    """One call of the user's function: fresh losses, and names for what they reach.

    Attributes:
        losses: those of this batch, checked.
        batch: all that the function returned.
        nodes: the operators of the losses' graph.
        tensors: name -> parameter or other leaf that may receive a gradient.
        buffers: name -> buffer.
        spans: per call of a module its name, and the range of autograd's sequence numbers in it.
    """

    losses: Losses
    batch: Batch
    nodes: list[Node]
    tensors: dict[str, Tensor]
    buffers: dict[str, Tensor]
    spans: list[tuple[str, int, int]]

    @property
    def losses_by_name(self) -> dict[str, Tensor]:
        """As a balancer takes them."""
        return dict(zip(self.losses.names, self.losses.tensors, strict=True))

    def require(self, names: tuple[str, ...]) -> None:
        """Refuse other losses than those of the first call."""
        if self.losses.names != names:
            raise ValueError(
                f"the losses differ from call to call: {list(names)}, then {list(self.losses.names)}; return the same "
                "batch each time"
            )

    def module_of(self, node: Node) -> str:
        """The innermost module in whose forward the operator was called; empty where that cannot be told."""
        number = node._sequence_nr()
        inside = [(stop - start, name) for name, start, stop in self.spans if start <= number < stop]
        return min(inside, default=(0, ""))[1]


class Replay:
    """Calls a function again and again from one state of the random numbers and buffers, and restores everything.

    ``.grad`` of what a step may write to is None within ``step()`` and as before after it.
    """

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._stack = ExitStack()
        self._buffers: WeakKeyDictionary[nn.Module, dict[str, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
        self._called: list[nn.Module] = []
        self._starts: list[int] = []
        self._spans: list[tuple[nn.Module, int, int]] = []

    def __enter__(self) -> "Replay":
        self._random = _random_state()
        self._stack.enter_context(_removing(register_module_forward_pre_hook(self._enter)))
        self._stack.enter_context(_removing(register_module_forward_hook(self._leave, always_call=True)))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._restore()

    @contextmanager
    def step(self) -> Iterator[Call]:
        """Losses on a fresh graph, computed with the same random numbers each time."""
        self._restore()
        self._called, self._starts, self._spans = [], [], []
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", _OF_HOOKS)
            batch = Batch.of(self._function(), name_of(self._function))
        losses = Losses.check(batch.losses)
        losses.require_graph()
        nodes = graph(losses.tensors)
        step = Call(losses, batch, nodes, *self._names(batch.model, nodes))
        saved = [(tensor, tensor.grad) for tensor in step.tensors.values()]
        try:
            for tensor, _ in saved:
                tensor.grad = None
            yield step
        finally:
            for tensor, grad in saved:
                tensor.grad = grad
            self._called, self._spans = [], []
            self._restore()

    def _names(
        self, model: nn.Module | None, nodes: Iterable[Node]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], list[tuple[str, int, int]]]:
        roots = dict.fromkeys(self._called) if model is None else [model]
        modules: dict[nn.Module, str] = {}
        for root in roots:
            for name, module in root.named_modules():
                modules.setdefault(module, name or type(root).__name__)
        tensors: dict[str, Tensor] = dict(model.named_parameters()) if model is not None else {}
        tensors = {name: parameter for name, parameter in tensors.items() if parameter.requires_grad}
        met = set(tensors.values())
        leaves = (leaf for node in nodes if (leaf := variable(node)) is not None)
        called = (parameter for module in self._called for parameter in module.parameters())
        for tensor in chain(leaves, called, (tensor for node in nodes for tensor in held(node))):
            if tensor.requires_grad and tensor not in met:
                met.add(tensor)
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
                tensors[f"a {kind} of shape {tuple(tensor.shape)} (number {len(tensors) + 1})"] = tensor
        buffers = {f"{name}.{key}": b for m, name in modules.items() for key, b in m._buffers.items() if b is not None}
        spans = [(modules.get(m, type(m).__name__), start, stop) for m, start, stop in self._spans]
        return tensors, buffers, spans

    def _enter(self, module: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling():
            return  # the compiled module around it has been seen
        for each in module.modules() if module not in self._buffers else ():
            tensors = {name: buffer for name, buffer in each._buffers.items() if buffer is not None}
            self._buffers.setdefault(each, {name: (buffer, buffer.clone()) for name, buffer in tensors.items()})
        self._called.append(module)
        self._starts.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]

    def _leave(self, module: nn.Module, _: Any, __: Any) -> None:
        if not torch.compiler.is_compiling() and self._starts:
            self._spans.append((module, self._starts.pop(), torch.autograd._get_sequence_nr()))  # type: ignore[attr-defined]

    @torch.no_grad()
    def _restore(self) -> None:
        for module, buffers in list(self._buffers.items()):
            for name, (buffer, value) in buffers.items():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
                module._buffers[name] = buffer
        _set_random_state(self._random)


def _random_state() -> list[tuple[Callable[[Any], object], Any]]:
    states: list[tuple[Callable[[Any], object], Any]] = [
        (random.setstate, random.getstate()),
        (torch.set_rng_state, torch.get_rng_state()),
    ]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states.append((torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all()))
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        states.append((numpy.random.set_state, numpy.random.get_state()))
    return states


def _set_random_state(states: list[tuple[Callable[[Any], object], Any]]) -> None:
    for restore, state in states:
        restore(state)


@contextmanager
def _removing(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
