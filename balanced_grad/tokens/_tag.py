"""An identity behind a layer, whose backward hands what went through the layer to whoever takes gradients."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.autograd.graph import Node


class Receiver(Protocol):
    """Who takes what went through a layer."""

    def receive(self, layer: nn.Module, inputs: Tensor, grad: Tensor) -> None:
        """The input of a call of ``layer``, and the gradient of the loss at its output."""


@dataclass(slots=True)
class Call:
    """One call of a watched layer.

    Attributes:
        layer: that was called.
        shape: of its output.
        anchor: the leaf of whoever watches the layer.
        upstream: the node that made the input; None for a leaf, and where no gradient goes.
        receiver: who takes gradients right now.
    """

    layer: nn.Module
    shape: torch.Size
    anchor: Tensor
    upstream: "Node | None"
    receiver: Receiver | None = None


class Tag(torch.autograd.Function):
    """Every call of a layer leads to an anchor too.

    Whoever asks autograd for the gradient at the anchor alone makes it pass all tags, without a product for a weight.
    The input is saved by autograd's own means, so activation checkpointing and offloading hold for it.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, inputs: Tensor, call: Call) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.set_materialize_grads(False)
        ctx.call = call
        return output.detach()  # not a view, which nothing could change in place

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if ctx.call.receiver is not None and grad is not None:
            (inputs,) = ctx.saved_tensors
            with torch.no_grad():
                ctx.call.receiver.receive(ctx.call.layer, inputs, grad)
        return grad, None, None, None


def tag_type() -> type:
    """Of the nodes of tags in a graph."""
    found: type = Tag._backward_cls
    return found


def watch(layer: nn.Module, anchor: Tensor) -> Any:
    """Tag every call of the layer in which it trains, from now on; returns the hook's handle."""

    def tag(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        if not any(parameter.requires_grad for parameter in module._parameters.values() if parameter is not None):
            return None
        if torch.compiler.is_compiling() or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        inputs = args[0] if args else next(iter(kwargs.values()))
        call = Call(module, output.shape, anchor, inputs.grad_fn)
        here = anchor if anchor.device == output.device else anchor.to(output.device)
        tagged: Tensor = Tag.apply(output, here, inputs.detach(), call)  # type: ignore[no-untyped-call]
        return tagged

    # First of all hooks: one of the user's may replace the output.
    return layer.register_forward_hook(tag, prepend=True, with_kwargs=True)
