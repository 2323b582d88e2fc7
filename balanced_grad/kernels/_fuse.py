import math
from typing import NamedTuple

from torch import Tensor

from balanced_grad.kernels._dispatch import Implementation
from balanced_grad.kernels._layout import check_rows
from balanced_grad.kernels._moments import rates
from balanced_grad.kernels._pass import run


class Fused(NamedTuple):
    """A fused row and, where asked for, sums over its columns (divide by D for means).

    Attributes:
        row: ``(D,)``, in the units of the rows.
        belief: ``(M,)`` float64, ``Σ_d b_id``.
        leading: ``(M,)`` float64, in how many dimensions the row has more evidence than every other one; ties count for
            none.
        uncertainty: ``()`` float64, ``Σ_d u_d``; a column of padding, all 0, adds 1.
    """

    row: Tensor
    belief: Tensor | None = None
    leading: Tensor | None = None
    uncertainty: Tensor | None = None


def evidential_fuse(
    rows: Tensor,
    variance: Tensor,
    reference: Tensor,
    *,
    kappa: float = 1.0,
    cap: float = 1e4,
    eps: float = 1e-8,
    present: Tensor | None = None,
    out: Tensor | None = None,
    sums: bool = False,
    implementation: Implementation = "auto",
) -> Fused:
    """One gradient from those of several sources, weighed per dimension by evidence, in one pass.

        e_i = min(κ / (ref v_i + eps), cap),   S = Σ_j (e_j + 1),   ĝ = M Σ_i (e_i + 1) / S · r_i

    The same as ``evidence.fuse_gradients`` with ``frame="modality"`` and a given reference: with equal evidence the
    plain sum, with much evidence inverse-variance weighting. Least traffic: 2M + 1 streams of D numbers.

    Args:
        rows: ``(M, D)``, real floating point. A non-finite entry is left out of its dimension; a dimension of which
            nothing is left is NaN, so that a loss scaler sees it.
        variance: ``(M, D)``, non-negative. Where it is 0 or not finite the evidence is 0: nothing is known there.
        reference: 0-dimensional, the typical precision ``ref``, in units of 1 / variance.
        kappa: how much a typical precision counts beside the prior of one pseudo-count. Default 1 (ours).
        cap: largest evidence. Default 1e4 (ours).
        eps: floor on the variance in units of ``1 / ref``.
        present: ``(M,)`` bool; an absent row (a missing modality) is left out and M shrinks. With none, ``ĝ`` is 0.
        out: ``(D,)`` of the dtype of ``rows`` to write to; default: a new tensor.
        sums: whether to add up beliefs ``e_i / S``, uncertainty ``M / S`` and leads as well.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``Fused(row, belief, leading, uncertainty)``; the last three are None without ``sums``.

    Raises:
        TypeError, ValueError: for shapes or dtypes that do not fit, or a negative ``kappa``, ``cap`` or ``eps``.
        RuntimeError: for ``implementation="triton"`` where Triton cannot run.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import evidential_fuse
        >>> rows, variance = torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
        >>> fused = evidential_fuse(rows, variance, torch.tensor(1.0), sums=True)
        >>> fused.row, fused.leading
        (tensor([4.0000, 3.6000]), tensor([1., 0.], dtype=torch.float64))
    """
    out = _checked_out(rows, reference, kappa, cap, eps, present, out)
    if variance.shape != rows.shape:
        raise ValueError(f"variance has shape {tuple(variance.shape)}; give that of the rows, {tuple(rows.shape)}")
    totals = run(
        rows,
        variance,
        reference=reference,
        present=present,
        out=out,
        evidence=[kappa, cap, eps],
        sums=sums,
        implementation=implementation,
    )
    return _fused(out, totals)


def evidential_step(  # noqa: D417 - described where they are explained
    rows: Tensor,
    mean: Tensor | None,
    variance: Tensor,
    weight: Tensor,
    beta: float,
    reference: Tensor,
    *,
    new_variance: Tensor | None = None,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
    kappa: float = 1.0,
    cap: float = 1e4,
    eps: float = 1e-8,
    present: Tensor | None = None,
    out: Tensor | None = None,
    sums: bool = False,
    implementation: Implementation = "auto",
) -> Fused:
    """``moments_update`` and then ``evidential_fuse`` with the new variance, in one pass over the rows.

    Least traffic, in streams of D numbers: 5M + 1 with a mean, 3M + 1 without, 4M + 1 with ``new_variance``.

    Args:
        rows, mean, variance, weight, beta, new_variance, scale, ok: as for ``moments_update``. A row that is not
            ``present`` keeps its state too.
        reference, kappa, cap, eps, present, out, sums: as for ``evidential_fuse``; ``reference`` is in units of
            unscaled gradients, and the fused row carries ``scale`` as the rows do.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``Fused(row, belief, leading, uncertainty)``; the last three are None without ``sums``.

    Raises:
        TypeError, ValueError, RuntimeError: as those two; nothing has been changed then.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import evidential_step
        >>> mean, variance, weight = torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2)
        >>> for steady, noisy in ([2.0, 1.0], [2.1, 5.0], [2.0, 1.0], [2.1, 5.0]):
        ...     rows = torch.tensor([[steady], [noisy]])
        ...     fused = evidential_step(rows, mean, variance, weight, 0.9, torch.tensor(1.0))
        >>> rows.sum(), fused.row  # the plain sum, and what is nearer to twice the steady row
        (tensor(7.1000), tensor([4.2...]))
    """
    out = _checked_out(rows, reference, kappa, cap, eps, present, out)
    if present is not None:
        ok = present if ok is None else ok & present
    rate, after = rates(rows, mean, variance, weight, beta, new_variance, ok)
    found = run(
        rows,
        variance,
        mean=mean,
        rate=rate,
        new_variance=new_variance,
        scale=scale,
        reference=reference,
        present=present,
        out=out,
        evidence=[kappa, cap, eps],
        sums=sums,
        implementation=implementation,
    )
    weight.detach().copy_(after)
    return _fused(out, found)


def _fused(out: Tensor, sums: Tensor) -> Fused:
    if len(sums) == 0:
        return Fused(out)
    count = len(sums) // 2
    return Fused(out, sums[:count], sums[count:-1], sums[-1])


def _checked_out(
    rows: Tensor,
    reference: Tensor,
    kappa: float,
    cap: float,
    eps: float,
    present: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    check_rows(rows)
    for name, value in (("kappa", kappa), ("cap", cap), ("eps", eps)):
        if math.isnan(value) or value < 0:
            raise ValueError(f"{name}={value!r}: give a number >= 0")
    if reference.dim():
        raise ValueError(f"reference has shape {tuple(reference.shape)}; give one typical precision, shape ()")
    if present is not None and present.shape != rows.shape[:1]:
        raise ValueError(f"present has shape {tuple(present.shape)}; give one bool per row, ({len(rows)},)")
    if out is None:
        return rows.new_empty(rows.shape[1])
    if out.shape != rows.shape[1:] or out.dtype != rows.dtype:
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}; give {tuple(rows.shape[1:])} {rows.dtype}")
    return out
