"""Parameters that are trained behind autograd's back: by a custom Function whose backward() runs one of its own."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.autograd.graph import Node

_DEEP = 4  # containers within containers that are looked into
_REENTRANT = "CheckpointFunctionBackward"


def trains_by_itself(node: object) -> bool:
    """Whether the node of a custom Function looks as if it could: it holds trainable parameters, or code that does."""
    return type(node).__name__ == _REENTRANT or next(_parameters(vars(node).values()), None) is not None


def refuse_hidden(loss: str, nodes: Iterable["Node"], leaves: Mapping[Tensor, object]) -> None:
    """Refuse Functions that hold trainable parameters which the graph does not lead to."""
    for node in nodes:
        name = type(node).__name__
        if name == _REENTRANT:
            raise RuntimeError(
                f"loss {loss!r} passes through activation checkpointing with use_reentrant=True, whose parameters "
                "cannot be reached one loss at a time; write checkpoint(..., use_reentrant=False), with Hugging Face "
                'gradient_checkpointing_kwargs={"use_reentrant": False}'
            )
        hidden = [p for p in dict.fromkeys(_parameters(vars(node).values())) if p not in leaves]
        if hidden:
            what = name.removesuffix("Backward")
            raise RuntimeError(
                f"loss {loss!r} passes through the autograd Function {what}, which holds {len(hidden)} trainable "
                f"parameters (the first of shape {tuple(hidden[0].shape)}) that the graph does not lead to: its "
                "backward() trains them by itself, with the plain gradient of every loss. Run that part of the model "
                "without it (reversible layers, tiled layers, offloading), put it below the features of "
                "level='features', or use a losses-only balancer such as Uniform or MIMO"
            )


def _parameters(values: Iterable[Any], depth: int = 0) -> Iterator[Tensor]:
    """Trainable parameters in what a node holds: modules, containers, bound methods, closures."""
    for value in values:
        if isinstance(value, nn.Parameter):
            if value.requires_grad:
                yield value
        elif isinstance(value, nn.Module):
            yield from (p for p in value.parameters() if p.requires_grad)
        elif depth < _DEEP:
            yield from _parameters(_parts(value), depth + 1)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType):
        return [*_cells(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return ()


def _cells(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
