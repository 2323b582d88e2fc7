"""Gradients into ``.grad``, as autograd would put them there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def accumulate(parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
    """Add each gradient to its parameter's ``.grad``; where that is None, the tensor itself becomes ``.grad``."""
    existing, added = [], []
    for parameter, grad in zip(parameters, grads, strict=True):
        if parameter.grad is None:
            parameter.grad = _with_layout_of(parameter, grad)
        elif grad.is_sparse or parameter.grad.is_sparse:
            parameter.grad = parameter.grad + grad
        else:
            existing.append(parameter.grad)
            added.append(grad)
    if existing:
        torch._foreach_add_(existing, added)


def scaled(grads: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """New tensors ``weight * grad``: what autograd returned may be aliased, so never in place."""
    if any(grad.is_sparse for grad in grads):
        return [grad * weight.to(grad.dtype) for grad in grads]
    return list(torch._foreach_mul(list(grads), weight.to(grads[0].dtype)))


def _with_layout_of(parameter: Tensor, grad: Tensor) -> Tensor:
    if grad.is_sparse or grad.stride() == parameter.stride():
        return grad
    return torch.empty_like(parameter, dtype=grad.dtype).copy_(grad)
