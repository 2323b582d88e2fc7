from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from balanced_grad.capture._losses import Losses


class _OnBackward(torch.autograd.Function):
    """Identity on a detached anchor: its outer graph is one node deep, the real losses live in the callback."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
        ctx.callback = callback
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True is not supported by a balancer that captures per-loss gradients; "
                "call backward() without it, or use a losses-only balancer such as Uniform or MIMO, without params="
            )
        callback, ctx.callback = ctx.callback, None
        if callback is None:
            raise RuntimeError(
                "backward() was called a second time on the scalar of a balancer, whose graph the first call "
                "freed; call the balancer again on fresh losses"
            )
        callback(grads[0])
        return None, None


class _Weighted(torch.autograd.Function):
    """A scalar of a given value whose gradient is a given weighted sum of the losses' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor, *losses: Tensor) -> Tensor:
        ctx.weights = weights
        ctx.dtypes = [loss.dtype for loss in losses]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        seeds = (grads[0] * ctx.weights).unbind()
        return None, None, *(seed.to(dtype) for seed, dtype in zip(seeds, ctx.dtypes, strict=True))


def on_backward(value: Tensor, callback: Callable[[Tensor], None]) -> Tensor:
    """Scalar equal to ``value`` whose ``backward()`` calls ``callback(incoming gradient)``, once."""
    out: Tensor = _OnBackward.apply(value.detach().requires_grad_(), callback)  # type: ignore[no-untyped-call]
    return out


def weighted(value: Tensor, weights: Tensor, losses: Losses) -> Tensor:
    """Scalar equal to ``value`` whose ``backward()`` is one ordinary backward of ``sum(weights * losses)``."""
    out: Tensor = _Weighted.apply(value, weights, *losses.tensors)  # type: ignore[no-untyped-call]
    return out
