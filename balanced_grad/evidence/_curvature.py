from torch import Tensor


def softmax_curvature(logits: Tensor, features: Tensor) -> Tensor:
    """Exact diagonal of the Hessian of mean cross-entropy in the weights of a linear last layer.

        h_cf = mean_n p_nc (1 - p_nc) x_nf²,   p = softmax(logits)

    Independent of the labels; no second backward. For a bias append a feature that is 1.

    Args:
        logits: ``(..., N, C)`` outputs of the layer.
        features: ``(..., N, F)`` its inputs.

    Returns:
        ``(..., C, F)``, non-negative, laid out as the layer's ``weight``; at least float32.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import softmax_curvature
        >>> softmax_curvature(torch.zeros(1, 2), torch.tensor([[1.0, 2.0, 0.0]]))
        tensor([[0.2500, 1.0000, 0.0000],
                [0.2500, 1.0000, 0.0000]])
    """
    if logits.shape[:-1] != features.shape[:-1]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and features {tuple(features.shape)} must agree up to their last dimension"
        )
    logits = logits.float() if logits.itemsize < 4 else logits
    p = logits.softmax(-1)
    return (p * (1 - p)).mT @ features.to(p.dtype).square() / logits.shape[-2]


def laplace_variance(curvature: Tensor, num_data: float, prior_precision: float = 1.0) -> Tensor:
    """Variance of a gradient under the diagonal Laplace posterior of its parameters.

        v = h² / (N h + δ)

    With the posterior ``θ ~ N(θ*, 1 / (N h + δ))`` and the gradient linearised as ``g + h (θ - θ*)``. For
    ``N h ≫ δ`` this is ``h / N``: sensitive dimensions are uncertain, flat ones certain.

    Args:
        curvature: ``h``, any shape; negative entries count as 0 (a raw Hessian may have them, a Fisher has not).
        num_data: ``N > 0``, the size of the training set.
        prior_precision: ``δ > 0``; default 1 (ours).

    Returns:
        The variance, of the shape of ``curvature``; 0 where the curvature is 0 (a dead feature).

    Raises:
        ValueError: for a ``num_data`` or ``prior_precision`` that is not positive.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import laplace_variance
        >>> laplace_variance(torch.tensor([2.0]), num_data=100)  # 4 / 201
        tensor([0.0199])
    """
    if not num_data > 0:
        raise ValueError(f"num_data={num_data!r}: give the number of training items, > 0")
    if not prior_precision > 0:
        raise ValueError(f"prior_precision={prior_precision!r}: give a number > 0")
    h = curvature.clamp_min(0)
    return h.square() / (num_data * h + prior_precision)
