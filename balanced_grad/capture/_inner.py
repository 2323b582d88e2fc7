"""Inner products of captured gradients, put together into one Gramian over the losses."""

from collections.abc import Sequence

import torch
from torch import Tensor

from balanced_grad.caching import cached
from balanced_grad.kernels import gramian


@cached(maxsize=1024)
def index(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Host integers as a tensor on the device, made once."""
    return torch.tensor(places, device=device)  # cached: the copy to a GPU would wait for the host each step


def add_block(total: Tensor, block: Tensor, losses: tuple[int, ...]) -> None:
    """Add the ``(R, R)`` block of the losses with these indices into the ``(K, K)`` total."""
    count = total.shape[0]
    places = tuple(i * count + j for i in losses for j in losses)
    total.view(-1).index_add_(0, index(places, total.device), block.to(total.device).view(-1))


def select(weights: Tensor, losses: tuple[int, ...]) -> Tensor:
    """The weights of the losses with these indices."""
    return weights if losses == tuple(range(len(weights))) else weights[index(losses, weights.device)]


def squared_norm(grads: Sequence[Tensor]) -> Tensor:
    """``(1, 1)`` float64 squared norm of all tensors together."""
    total = torch.zeros(1, 1, dtype=torch.float64, device=grads[0].device)
    for grad in grads:
        values = grad.coalesce().values() if grad.is_sparse else grad
        total += gramian(real_row(values)[None])
    return total


def real_row(tensor: Tensor) -> Tensor:
    """All entries in one real row; complex ones as pairs, so that products are real parts of inner products."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)


def unit_of(scale: Tensor) -> Tensor:
    """What gradients are divided by, so that no statistic depends on the loss scale; 1 where they are all 0."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
