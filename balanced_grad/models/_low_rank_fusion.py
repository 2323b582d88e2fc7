import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor, nn


class LowRankFusion(nn.Module):
    """Features of several modalities multiplied with each other, by a tensor of low rank (LRTF).

        f_o = Σ_r Π_m ( W_m[r, o] · [h_m; 1] ),   r = 1 ... R

    This is the layer ``f_o = Σ T_o[i_1, ..., i_M] z_1[i_1] ... z_M[i_M]`` on all products of the entries of
    ``z_m = [h_m; 1]``, for a ``T_o`` of rank ``R`` at most. The ones bring in the products of fewer modalities, each
    alone too. With ``O`` outputs there are ``R O Σ_m (d_m + 1)`` parameters instead of ``O Π_m (d_m + 1)``, and the
    large tensor is never formed. Where concatenation and a linear layer add up what modalities say, this head also
    knows what holds only for pairs of them, such as an XOR.

    Source: Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors" (ACL 2018). Madaan et al.
    (NeurIPS 2024) have it in their inter-modality experts. The published code also weighs the ranks, which
    the factors can, and adds a bias, which is one rank more; the start, with outputs of variance 1 for features of
    variance 1, is ours.

    Args:
        sizes: ``d_m``, width of each modality's features.
        out_features: ``O``.
        rank: ``R``; more parameters, and more that can be expressed. Default 4, ours.

    Attributes:
        factors: ``W_m``, per modality ``(R, O, d_m + 1)``.

    Raises:
        ValueError: for no modality, a size or rank below 1; in a call, for features that do not fit.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import LowRankFusion
        >>> fusion = LowRankFusion([32, 8], 10, rank=4)
        >>> fusion(torch.randn(5, 32), torch.randn(5, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(self, sizes: Sequence[int], out_features: int, *, rank: int = 4) -> None:
        super().__init__()
        if not sizes or min(*sizes, out_features, rank) < 1:
            raise ValueError(f"sizes={list(sizes)}, out_features={out_features}, rank={rank}: give whole numbers >= 1")
        self.sizes, self.out_features, self.rank = tuple(sizes), out_features, rank
        self.factors = nn.ParameterList(torch.empty(rank, out_features, size + 1) for size in sizes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the factors anew: each product has variance ``1 / R``, so that their sum has 1."""
        share = self.rank ** (-0.5 / len(self.sizes))
        for factor in self.factors:
            nn.init.normal_(factor, std=share / math.sqrt(factor.shape[-1]))

    def forward(self, *features: Tensor) -> Tensor:
        """``(..., O)`` from one ``(..., d_m)`` per modality, in order."""
        widths = [h.shape[-1] for h in features]
        if tuple(widths) != self.sizes:
            raise ValueError(f"features of widths {widths} were given; the sizes are {list(self.sizes)}")
        terms = (
            torch.einsum("...d,rod->...ro", h, factor[..., :-1]) + factor[..., -1]
            for h, factor in zip(features, self.factors, strict=True)
        )
        product: Tensor = reduce(torch.mul, terms)
        return product.sum(-2)

    def extra_repr(self) -> str:
        """Settings."""
        return f"sizes={list(self.sizes)}, out_features={self.out_features}, rank={self.rank}"
