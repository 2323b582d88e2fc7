"""Distances between gradients, and which of them rounding cannot explain."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import Node

Grads = Mapping[str, Tensor]


def tolerance(nodes: Iterable[Node]) -> float:
    """Square root of the machine precision of the coarsest type that a gradient in this graph has."""
    kinds = {data.dtype for node in nodes for data in node._input_metadata if data.dtype.is_floating_point}
    eps = max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)
    if torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32:
        eps = max(eps, torch.finfo(torch.float16).eps if torch.cuda.is_available() else 0.0)  # TF32 has as many bits
    return float(eps**0.5)


def kept(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the gradients that there are."""
    return {name: in_double(tensor.grad) for name, tensor in tensors.items() if tensor.grad is not None}


def in_double(tensor: Tensor) -> Tensor:
    """A dense copy in double precision on the CPU."""
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    return dense.to("cpu", torch.complex128 if dense.is_complex() else torch.float64, copy=True)


def weighted(grads: Sequence[Grads], weights: Sequence[float]) -> dict[str, Tensor]:
    """``Σ_k w_k g_k`` per parameter."""
    out: dict[str, Tensor] = {}
    for each, weight in zip(grads, weights, strict=True):
        for name, grad in each.items():
            out[name] = out[name] + weight * grad if name in out else weight * grad
    return out


def sizes(grads: Sequence[Grads], weights: Sequence[float]) -> dict[str, float]:
    """What an error is relative to: ``Σ_k w_k |g_k|``, or that of a parameter of typical size where it is less.

    Gradients that are zero but for rounding, such as that of a bias before BatchNorm, have no direction to compare.
    """
    out: dict[str, float] = {}
    counts: dict[str, int] = {}
    for each, weight in zip(grads, weights, strict=True):
        for name, grad in each.items():
            out[name] = out.get(name, 0.0) + weight * grad.nan_to_num().norm().item()
            counts[name] = max(grad.numel(), 1)
    per_entry = sorted(size / counts[name] ** 0.5 for name, size in out.items() if size > 0)
    typical = per_entry[len(per_entry) // 2] if per_entry else 1.0
    return {name: max(size, typical * counts[name] ** 0.5) for name, size in out.items()}


def errors(actual: Grads, expected: Grads, relative_to: Mapping[str, float]) -> dict[str, float]:
    """Per parameter the relative error; 1 where a gradient is missing, infinite where only one of them is finite."""
    out = {}
    for name in {**expected, **actual}:
        right = expected.get(name)
        if right is None:
            extra = actual[name].norm().item()
            out[name] = extra / relative_to.get(name, extra) if extra else 0.0
            continue
        difference = actual.get(name, torch.zeros_like(right)) - right
        finite = right.isfinite()
        size = torch.where(finite, difference, 0.0).norm().item()
        out[name] = size / relative_to[name] if size == size else float("inf")
    return out
