"""How much the gradient of one linear layer's weight varies over the items of a batch, from what went through it."""

import torch
from torch import Tensor

_BUDGET = 1 << 18  # numbers of per-item gradients held at a time, in a buffer that stays in the cache


def fisher_curvature(gradients: Tensor, inputs: Tensor) -> Tensor:
    """Diagonal of the empirical Fisher information in the weight of a linear layer.

        h_cf = mean_n (∂ℓ_n/∂W_cf)²,   ∂ℓ_n/∂W = Σ_t N G_nt x_ntᵀ

    for a loss that is the mean of ``ℓ_n`` over ``N`` items, from the gradient ``G`` at the layer's output. No
    second backward, and no per-item gradient is kept.

    Args:
        gradients: ``(N, T, C)`` gradient of the loss at the outputs; ``T`` positions (or calls) per item.
        inputs: ``(N, T, F)`` inputs of the layer; ones for its bias.

    Returns:
        ``(C, F)``, non-negative, at least float32.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import fisher_curvature
        >>> fisher_curvature(torch.tensor([[[0.5]], [[-0.5]]]), torch.tensor([[[1.0]], [[3.0]]]))
        tensor([[5.]])
    """
    return (sum_of_squares(gradients, inputs) * len(gradients)).to(widened(gradients[:0]).dtype)


def sample_variance(gradients: Tensor, inputs: Tensor) -> Tensor:
    """Sampling variance of a mean gradient in the weight of a linear layer, over the items of the batch.

        v_cf = Σ_n (g_n - ḡ)² / (N (N - 1)),   g_n = ∂ℓ_n/∂W_cf

    Arguments and result as for ``fisher_curvature``. Sums are in float64, so that the variance of items that differ in
    their last digits is right too. For one item the variance is unknown: NaN.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import sample_variance
        >>> sample_variance(torch.tensor([[[0.5]], [[-0.5]]]), torch.tensor([[[1.0]], [[3.0]]]))  # of 1 and -3
        tensor([[4.]])
    """
    items = len(gradients)
    kind = widened(gradients[:0]).dtype
    if items < 2:
        return torch.full((gradients.shape[-1], inputs.shape[-1]), torch.nan, dtype=kind, device=gradients.device)
    return item_variance(gradients, inputs).to(kind)


def item_variance(gradients: Tensor, inputs: Tensor) -> Tensor:
    """``sample_variance`` in float64: where items nearly agree, it is the difference of two nearly equal sums."""
    items = len(gradients)
    gradients, inputs = gradients.double(), inputs.double()
    mean = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)
    spread = items * sum_of_squares(gradients, inputs) - mean.square()
    return spread.clamp_min(0) / (items - 1) if items > 1 else torch.full_like(mean, torch.nan)


def sum_of_squares(gradients: Tensor, inputs: Tensor) -> Tensor:
    """``Σ_n (Σ_t G_nt x_ntᵀ)²``, entry by entry, in float64: squares of small gradients vanish in float32."""
    gradients, inputs = gradients.double(), inputs.double()
    if gradients.shape[1] == 1:
        return gradients[:, 0].square().T @ inputs[:, 0].square()
    size = gradients.shape[-1] * inputs.shape[-1]
    step = max(1, _BUDGET // size)
    total = gradients.new_zeros(gradients.shape[-1], inputs.shape[-1])
    buffer = gradients.new_empty(step, *total.shape)  # fresh memory would cost more than the products
    for grads, seen in zip(torch.split(gradients, step), torch.split(inputs, step), strict=True):
        each = torch.bmm(grads.mT, seen, out=buffer[: len(grads)])
        total += each.square_().sum(0)
    return total


def widened(values: Tensor) -> Tensor:
    """At least float32."""
    return values.float() if values.itemsize < 4 else values
