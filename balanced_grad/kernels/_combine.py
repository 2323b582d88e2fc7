from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from balanced_grad.kernels._compiled import compiled
from balanced_grad.kernels._dispatch import Implementation, choose, plain
from balanced_grad.kernels._layout import blocks, check_rows, wide
from balanced_grad.kernels._segments import Bounds, check_bounds, owners, runs

_BLOCK = 1 << 18  # columns: of one stream beside the rows, so twice what other passes take
_SHORT, _LONGEST = 4096, 1 << 16  # shorter segments than this are weighed together, by weights spread over columns


def combine(
    rows: Tensor,
    weights: Tensor,
    out: Tensor | None = None,
    *,
    segments: Sequence[int] | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Weighted sum of the rows: one read of them, one write.

        d = Σ_i w_i r_i

    Args:
        rows: ``(M, D)``, real floating point; half-precision rows are summed in float32 and rounded once.
        weights: ``(M,)``, or ``(S, M)`` with segments; any floating dtype, on the device of ``rows``.
        out: ``(D,)`` of the dtype of ``rows`` to write to, not one of the rows; default: a new tensor.
        segments: where each of ``S`` segments of columns starts, and the end: rising from 0 to D.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Returns:
        ``out``.

    Raises:
        TypeError, ValueError: for rows that are not ``(M, D)`` real floating point, weights or ``out`` of another
            shape, bounds that do not rise from 0 to D, or an unknown implementation.
        RuntimeError: for ``implementation="triton"`` where Triton cannot run.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import combine
        >>> rows = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
        >>> combine(rows, torch.tensor([1.0, 0.1]))
        tensor([2., 4.])
        >>> combine(rows, torch.tensor([[1.0, 0.1], [0.0, 1.0]]), segments=[0, 1, 2])
        tensor([ 2., 20.])
    """
    check_rows(rows)
    bounds = None if segments is None else check_bounds(segments, rows.shape[1])
    shape = (len(rows),) if bounds is None else (len(bounds) - 1, len(rows))
    if weights.shape != shape:
        raise ValueError(f"weights have shape {tuple(weights.shape)}; for these rows give {shape}")
    if out is None:
        out = rows.new_empty(rows.shape[1])
    elif out.shape != rows.shape[1:] or out.dtype != rows.dtype:
        raise ValueError(f"out is {tuple(out.shape)} {out.dtype}; give {tuple(rows.shape[1:])} {rows.dtype}")
    chosen = choose(implementation, rows)
    with plain(rows):
        weights = weights.to(wide(rows.dtype))
        if chosen == "triton":
            from balanced_grad.kernels import _triton

            _triton.combine(rows, weights, out, bounds or (0, rows.shape[1]))
            return out
        for part, own in _stretches(weights, bounds):
            weigh = compiled(_weigh, len(rows), rows.dtype, own[0].dim()) if chosen == "compiled" else _in_blocks
            weigh([row[part] for row in rows.unbind(0)], list(own), out[part])
    return out


def _stretches(weights: Tensor, bounds: Bounds | None) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
    """Columns, and one weight per row for all of them, or ``(n,)`` weights where several short segments meet."""
    if bounds is None:
        yield slice(None), weights.unbind(0)
        return
    for first, last in runs(bounds, _SHORT, _LONGEST):
        spread = weights[first] if last == first + 1 else weights.T[:, owners(bounds, first, last, weights.device)]
        yield slice(bounds[first], bounds[last]), spread.unbind(0)


def _in_blocks(rows: list[Tensor], weights: list[Tensor], out: Tensor) -> None:
    if weights[0].dim():  # short already
        return _weigh(rows, weights, out)
    for part in blocks(out, _BLOCK):
        _weigh([row[part] for row in rows], weights, out[part])
    return None


def _weigh(rows: list[Tensor], weights: list[Tensor], out: Tensor) -> None:
    total = out if out.dtype == weights[0].dtype else torch.empty_like(out, dtype=weights[0].dtype)
    torch.mul(rows[0].to(total.dtype), weights[0], out=total)
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.addcmul_(row.to(total.dtype), weight)
    if total is not out:
        out.copy_(total)
