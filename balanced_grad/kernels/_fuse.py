import math
from functools import reduce

import torch
from torch import Tensor

from balanced_grad.kernels._dispatch import Implementation, choose, plain
from balanced_grad.kernels._layout import LEAST, MOST, check_rows, wide
from balanced_grad.kernels._pass import Rows, by_columns, finite


def evidential_fuse(
    rows: Tensor,
    variance: Tensor,
    reference: Tensor,
    *,
    kappa: float = 1.0,
    cap: float = 1e4,
    eps: float = 1e-8,
    out: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """One gradient from those of several sources, weighed per dimension by evidence, in one pass.

        e_i = min(κ / (ref_i v_i + eps), cap),   S = Σ_j (e_j + 1),   ĝ = M Σ_i (e_i + 1) / S · r_i

    The same as ``evidence.fuse_gradients`` with ``frame="modality"`` and a given reference: with equal evidence the
    plain sum, with much evidence inverse-variance weighting. Least traffic: 2M + 1 streams of D numbers.

    Args:
        rows: ``(M, D)``, real floating point. A non-finite entry is left out of its dimension; a dimension of which
            nothing is left is NaN, so that a loss scaler sees it.
        variance: ``(M, D)``, non-negative. Where it is 0 or not finite the evidence is 0: nothing is known there.
        reference: the typical precision ``ref``, in units of 1 / variance: ``()`` of all rows, or ``(M,)`` of each.
        kappa: how much a typical precision counts beside the prior of one pseudo-count. Default 1 (ours).
        cap: largest evidence. Default 1e4 (ours).
        eps: floor on the variance in units of ``1 / ref``.
        out: ``(D,)`` of the dtype of ``rows`` to write to; default: a new tensor.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``(D,)``, in the units and the dtype of the rows.

    Raises:
        TypeError, ValueError: for shapes or dtypes that do not fit, or a negative ``kappa``, ``cap`` or ``eps``.
        RuntimeError: for ``implementation="triton"`` where Triton cannot run.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import evidential_fuse
        >>> rows, variance = torch.tensor([[1.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0, 1.0], [1.0, 3.0]])
        >>> evidential_fuse(rows, variance, torch.tensor(1.0))
        tensor([4.0000, 3.6000])
    """
    out = _checked_out(rows, reference, kappa, cap, eps, out)
    if variance.shape != rows.shape:
        raise ValueError(f"variance has shape {tuple(variance.shape)}; give that of the rows, {tuple(rows.shape)}")
    chosen = choose(implementation, rows)
    with plain(rows):
        roots = reference.double().sqrt().expand(len(rows))
        kappa, cap, eps = min(kappa, MOST), min(cap, MOST), max(eps, LEAST)
        if chosen == "triton":
            from balanced_grad.kernels import _triton

            _triton.fuse(rows, variance, out, roots.contiguous(), kappa, cap, eps)
        else:
            finest = torch.promote_types(variance.dtype, wide(rows.dtype))
            gain = reference.new_full((), kappa, dtype=wide(rows.dtype))
            streams = rows, variance, out.unsqueeze(0)
            by_columns(_fuse, chosen, streams, list(roots.to(finest).unbind(0)), gain, eps, cap)
    return out


def _fuse(rows: Rows, variances: Rows, out: Rows, roots: Rows, gain: Tensor, floor: float, cap: float) -> None:
    """``roots`` are those of the references: in float32 a reference itself may be out of range."""
    pseudo_counts = []  # per row: evidence + 1, or 0 where the row is not there
    for row, variance, root in zip(rows, variances, roots, strict=True):
        share = (variance.to(root.dtype) * root).mul_(root)
        evidence = gain / share.add_(floor).to(gain.dtype)
        evidence = torch.ops.aten.threshold_backward(evidence, variance.sign().to(gain.dtype), 0)  # 0 where that is 0
        evidence = finite(evidence.clamp_max_(cap)).add_(1)
        pseudo_counts.append(finite(evidence.add_(row, alpha=0)))  # x + 0 row: NaN or x
    total = reduce(torch.add, pseudo_counts)
    number = reduce(torch.add, [count.clamp_max(1) for count in pseudo_counts])
    shares = [count.mul_(number).div_(total) for count in pseudo_counts]  # first: a count times a row may overflow
    weighed = shares[0] * finite(rows[0], own=False)
    for share, row in zip(shares[1:], rows[1:], strict=True):
        weighed.addcmul_(share, finite(row, own=False).to(share.dtype))
    out[0].copy_(weighed)


def _checked_out(
    rows: Tensor,
    reference: Tensor,
    kappa: float,
    cap: float,
    eps: float,
    out: Tensor | None,
) -> Tensor:
    check_rows(rows)
    for name, value in (("kappa", kappa), ("cap", cap), ("eps", eps)):
        if math.isnan(value) or value < 0:
            raise ValueError(f"{name}={value!r}: give a number >= 0")
    if reference.shape not in ((), rows.shape[:1]):
        raise ValueError(
            f"reference has shape {tuple(reference.shape)}; give one typical precision, shape (), or one per row, "
            f"({len(rows)},)"
        )
    if out is None:
        return rows.new_empty(rows.shape[1])
    if out.shape != rows.shape[1:] or out.dtype != rows.dtype:
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}; give {tuple(rows.shape[1:])} {rows.dtype}")
    return out
