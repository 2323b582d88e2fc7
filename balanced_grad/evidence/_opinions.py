import math
from typing import NamedTuple

import torch
from torch import Tensor

from balanced_grad.evidence._linear import widened


class Opinion(NamedTuple):
    """A subjective-logic opinion: what is believed, what is left open, and the weights that follow.

    Attributes:
        belief: mass committed to each alternative.
        uncertainty: mass on "any of them"; with the beliefs it sums to 1.
        weights: beliefs with the uncertainty shared evenly: the mean of the Dirichlet distribution with ``e + 1``
            pseudo-counts.
    """

    belief: Tensor
    uncertainty: Tensor
    weights: Tensor


def modality_opinion(evidence: Tensor, present: Tensor | None = None) -> Opinion:
    """Whose gradient to trust, per dimension, when each source speaks for itself only.

        S = M + Σ_j e_j,   b_i = e_i / S,   u = M / S,   w_i = (e_i + 1) / S

    The reduced Dempster rule on the frame of the ``M`` sources, where source ``i`` brings evidence ``e_i`` for
    "follow i" and none for the others: that combination has this closed form, in any order.

    Args:
        evidence: ``(..., M, D)``, non-negative; half precision is widened; infinite: certain, which leaves no weight
            to sources that are not.
        present: bool, broadcastable to ``evidence``: a source that is absent (a missing modality) is left out of all
            sums, so that M shrinks; its belief and weight are 0. Default: all present.

    Returns:
        Belief ``(..., M, D)``, uncertainty ``(..., D)`` (1 where no source is present), weights ``(..., M, D)``.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import modality_opinion
        >>> opinion = modality_opinion(torch.tensor([[3.0], [1.0]]))
        >>> opinion.belief.T, opinion.uncertainty, opinion.weights.T
        (tensor([[0.5000, 0.1667]]), tensor([0.3333]), tensor([[0.6667, 0.3333]]))
    """
    evidence = widened(evidence)
    here = torch.ones_like(evidence) if present is None else present.to(evidence).expand_as(evidence)
    evidence = _finite(torch.where(here > 0, evidence, torch.zeros_like(evidence)), -2)
    count = here.sum(-2)
    total = (count + evidence.sum(-2)).unsqueeze(-2).clamp_min(1)
    uncertainty = torch.where(count > 0, count / total.squeeze(-2), torch.ones_like(count))
    return Opinion(evidence / total, uncertainty, (evidence + here) / total)


def reduced_dempster(evidence: Tensor) -> Opinion:
    """Combine opinions of several sources over one frame of ``K`` alternatives.

        1 + e_k / K = Π_s (1 + e_sk / K)

    Masses lie on single alternatives and on the whole frame only. In evidence the pairwise rule of Trusted
    Multi-view Classification (Han et al., 2021) is this product: order-free, and evaluated here by log1p and expm1. A
    source without evidence is neutral. The combined uncertainty never exceeds the smallest of the sources', even if
    they contradict each other: a known weakness of the rule.

    Args:
        evidence: ``(..., S, K)``, non-negative; half precision is widened; infinite: certain, the limit.

    Returns:
        Belief ``(..., K)``, uncertainty ``(...)``, weights ``(..., K)``.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import reduced_dempster
        >>> opinion = reduced_dempster(torch.tensor([[3.0, 1.0], [1.0, 0.0]]))
        >>> opinion.belief, opinion.uncertainty
        (tensor([0.6471, 0.1176]), tensor(0.2353))
    """
    evidence = widened(evidence)
    frame = evidence.shape[-1]
    certain = evidence.isinf().any(-2)  # in the limit it outweighs all that is finite
    largest = math.log(torch.finfo(evidence.dtype).max)  # some releases of torch overflow before
    exponent = torch.log1p(evidence / frame).clamp_max(largest).sum(-2)
    exponent = torch.where(certain.any(-1, keepdim=True), certain * 1e3, exponent)
    top = exponent.amax(-1, keepdim=True)
    # All divided by exp(top): the product itself overflows for many sources or strong ones.
    small = torch.expm1(exponent.clamp_max(50.0)) * torch.exp(-top)
    mass = torch.where(exponent < 50.0, small, torch.exp(exponent - top))
    total = torch.exp(-top).squeeze(-1) + mass.sum(-1)
    belief = mass / total.unsqueeze(-1)
    uncertainty = torch.exp(-top).squeeze(-1) / total
    return Opinion(belief, uncertainty, belief + (uncertainty / frame).unsqueeze(-1))


def _finite(evidence: Tensor, dim: int) -> Tensor:
    """Evidence whose sums are finite: beside what is infinite the rest is 0, and very much is as good as infinite."""
    certain = evidence.isinf()
    most = torch.finfo(evidence.dtype).max ** 0.75
    evidence = torch.where(certain, torch.full_like(evidence, most), evidence)
    outweighed = certain.any(dim, keepdim=True) & ~certain
    return torch.where(outweighed, torch.zeros_like(evidence), evidence).clamp_max(most)
