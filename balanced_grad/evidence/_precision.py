import math

import torch
from torch import Tensor

MOST = 1e30  # evidence: sums and products of it stay in float32's range
_LEAST = 1e-250


def precision_evidence(
    variance: Tensor,
    kappa: float = 1.0,
    *,
    reference: Tensor | None = None,
    cap: float = 1e4,
    eps: float = 1e-8,
) -> Tensor:
    """Evidence per source and dimension: precision in units of a typical precision.

        r = 1 / (v + eps · median(v)),   e = min(κ r / median(r), cap)

    Raw precision has the unit of 1 / gradient²; dividing by its median makes evidence a pure number, so that
    rescaling all losses changes nothing. ``κ → 0`` is plain training, ``κ → ∞`` inverse-variance weighting (up to the
    cap). Medians are over all sources and dimensions with a positive finite variance. A variance of 0 (a dead
    feature) or a non-finite one gives evidence 0: nothing is known there.

    Args:
        variance: ``(..., M, D)``, non-negative; half precision is widened, since 1 / v overflows it.
        kappa: how much a typical precision counts beside the prior of one pseudo-count. Default 1 (ours).
        reference: ``(...)`` the typical precision ``median(r)`` to use instead of this one's, for instance a running
            one: a median is a pass of its own.
        cap: largest evidence. Default 1e4 (ours).
        eps: floor on the variance, relative to its median; without effect where ``reference`` is given, for which it
            is relative to ``1 / reference``.

    Returns:
        ``(..., M, D)``, in [0, cap], at least float32.

    Raises:
        ValueError: for a ``kappa``, ``cap`` or ``eps`` that is negative or no number.

    Examples:
        >>> import torch
        >>> from balanced_grad.evidence import precision_evidence
        >>> precision_evidence(torch.tensor([[1.0, 4.0, 0.0], [2.0, 2.0, 2.0]]))
        tensor([[2.0000, 0.5000, 0.0000],
                [1.0000, 1.0000, 1.0000]])
    """
    for name, value in (("kappa", kappa), ("cap", cap), ("eps", eps)):
        if math.isnan(value) or value < 0:
            raise ValueError(f"{name}={value!r}: give a number >= 0")
    variance = variance.float() if variance.itemsize < 4 else variance
    known = variance.isfinite() & (variance > 0)
    shares = torch.where(known, variance, torch.ones_like(variance)).double()  # 1 / v leaves float32's range
    shares = shares / _median(shares, known) if reference is None else shares * reference.double()[..., None, None]
    shares = shares.clamp(_LEAST, 1 / _LEAST) + eps
    unit = _median(1 / shares, known) if reference is None else 1.0
    evidence = (kappa / shares / unit).clamp_max(min(cap, MOST)).to(variance.dtype)
    return torch.where(known, evidence, torch.zeros_like(evidence))


def _median(values: Tensor, known: Tensor) -> Tensor:
    """Median over the last two dimensions of the known entries, kept as ones; 1 where nothing is known."""
    hidden = torch.where(known, values, torch.full_like(values, torch.nan)).flatten(-2)
    median = hidden.nanmedian(-1).values[..., None, None]
    return torch.where(median.isnan(), torch.ones_like(median), median)
