from typing import Literal

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.evidence._opinions import Opinion, modality_opinion
from balanced_grad.evidence._precision import precision_evidence

Frame = Literal["modality", "dimension", "single"]
"""What opinions are about: which source to follow, which of its dimensions count, whether to trust one entry."""
Reduction = Literal["sum", "mean"]
"""Of what the fused gradient has the size: of the sources' sum, or of their mean."""


def fuse_gradients(
    gradients: Tensor,
    variance: Tensor,
    *,
    kappa: float = 1.0,
    reference: Tensor | None = None,
    cap: float = 1e4,
    frame: Frame = "modality",
    reduction: Reduction = "sum",
    conservative: bool = False,
    present: Tensor | None = None,
) -> tuple[Tensor, Opinion]:
    """One gradient from those of several sources, each dimension weighed by how certain each source is there.

        ĝ_d = M Σ_i w_id g_id,   w from the evidence of ``precision_evidence``

    With equal evidence this is the plain sum, exactly; with much evidence, inverse-variance weighting.

    Args:
        gradients: ``(..., M, D)``, the sources' mean gradients.
        variance: ``(..., M, D)``, their variances.
        kappa: how much a typical precision counts, see ``precision_evidence``.
        reference: a typical precision to use instead of the median, see there.
        cap: largest evidence, see there.
        frame: what the opinions are about (which one the paper uses is unknown). ``"modality"`` (default): which
            source to follow, per dimension; ``w`` is the mean of the Dirichlet distribution. ``"dimension"``: one
            opinion per source over the D dimensions, ``b_id = e_id / (D + Σ_d e_id)``. ``"single"``: per source and
            dimension, whether to trust it, ``b_id = e_id / (e_id + 1)``. For the last two ``w_id = b_id / Σ_j b_jd``,
            and equal shares where no source has a belief.
        reduction: ``"sum"`` (default) keeps the size of summed gradients, ``"mean"`` drops the factor M.
        conservative: weigh by belief alone, so that the total weight is ``1 - u`` and uncertain dimensions move less.
        present: ``(..., M)`` bool; an absent source (a missing modality) is left out, and M shrinks.

    A non-finite entry of ``gradients`` is left out of its dimension like an absent source; a dimension in which all
    present sources are non-finite stays NaN, so that a loss scaler sees it.

    Returns:
        The fused gradient ``(..., D)`` in the dtype of ``gradients``, and the opinion: belief and weights
        ``(..., M, D)``, uncertainty ``(..., D)``, for ``frame="dimension"`` ``(..., M)``, one per source.

    Raises:
        ValueError: for an unknown frame or reduction, or shapes that differ.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import fuse_gradients
        >>> g = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
        >>> fused, opinion = fuse_gradients(g, torch.tensor([[1.0, 1.0], [1.0, 3.0]]))
        >>> fused  # the plain sum where both are equally certain, nearer to the first source where it is surer
        tensor([4.0000, 3.6000])
    """
    if gradients.shape != variance.shape or gradients.dim() < 2:
        raise ValueError(f"gradients {tuple(gradients.shape)} and variance {tuple(variance.shape)} must both be (M, D)")
    check_choice("frame", frame, Frame)
    check_choice("reduction", reduction, Reduction)
    wide = gradients.float() if gradients.itemsize < 4 else gradients
    evidence = precision_evidence(variance, kappa, reference=reference, cap=cap).to(wide.dtype)
    given = torch.ones_like(wide, dtype=torch.bool)
    if present is not None:
        given = given & present.unsqueeze(-1)
    here = given & wide.isfinite()
    evidence = torch.where(here, evidence, torch.zeros_like(evidence))
    opinion = _opinion(evidence, here, frame)
    weights = opinion.belief if conservative else opinion.weights
    fused = (weights * torch.where(here, wide, torch.zeros_like(wide))).sum(-2)
    count = here.sum(-2)
    if reduction == "sum":
        fused = fused * count
    lost = given.any(-2) & (count == 0)
    return torch.where(lost, torch.full_like(fused, torch.nan), fused).to(gradients.dtype), opinion


def _opinion(evidence: Tensor, here: Tensor, frame: Frame) -> Opinion:
    if frame == "modality":
        return modality_opinion(evidence, here)
    if frame == "dimension":
        size = evidence.shape[-1]
        uncertainty = 1 / (1 + evidence.sum(-1) / size)
        belief = evidence / size * uncertainty.unsqueeze(-1)
        return Opinion(belief, uncertainty, _shares(belief, here))
    belief = evidence / (evidence + 1)
    return Opinion(belief, (1 - belief).prod(-2), _shares(belief, here))


def _shares(belief: Tensor, here: Tensor) -> Tensor:
    """Each source's part of the belief in a dimension; equal parts of the present ones where there is none."""
    total = belief.sum(-2, keepdim=True)
    equal = here / here.sum(-2, keepdim=True).clamp_min(1)
    return torch.where(total > 0, belief / total.clamp_min(torch.finfo(total.dtype).tiny), equal.to(belief))
